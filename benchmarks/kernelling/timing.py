"""Times of several calls that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Call = Callable[[], Any]


def interleaved(calls: Mapping[str, Call], rounds: int, each_s: float = 0.003) -> dict[str, float]:
    """Median seconds of each, in rounds in which all take turns; the first of a round is another one each time."""
    repeats = {}
    for name, call in calls.items():
        call()
        began = time.perf_counter()
        call()
        repeats[name] = max(1, int(each_s / max(time.perf_counter() - began, 1e-7)))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        order = list(calls)
        turn = number % len(order)
        for name in order[turn:] + order[:turn]:
            call, count = calls[name], repeats[name]
            call()
            began = time.perf_counter()
            for _ in range(count):
                call()
            taken[name].append((time.perf_counter() - began) / count)
    return {name: statistics.median(times) for name, times in taken.items()}
