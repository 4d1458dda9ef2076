"""Interleaved timing of calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Call = Callable[..., Any]
median = statistics.median


def interleaved(calls: Sequence[Call], inputs: Sequence[Any], rounds: int) -> list[float]:
    """Median seconds of each call, run in turn so that what disturbs one disturbs all."""
    seconds: list[list[float]] = [[] for _ in calls]
    with torch.no_grad():
        for call in calls:
            for _ in range(3):
                call(*inputs)
        for at in range(rounds):
            for step in range(len(calls)):
                i = (at + step) % len(calls)
                started_s = time.perf_counter()
                calls[i](*inputs)
                seconds[i].append(time.perf_counter() - started_s)
    return [median(each) for each in seconds]
