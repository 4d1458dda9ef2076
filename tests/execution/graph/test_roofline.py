from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from execution.graph.cost import Peaks
from execution.graph.roofline import machine_peaks


def never() -> float:
    raise AssertionError("the cache has it")


def test_peaks_are_measured_once_and_kept(tmp_path: Path) -> None:
    ticks = itertools.count()
    first = machine_peaks(1, cache=tmp_path, clock=lambda: next(ticks) * 0.5)
    assert first == Peaks(2.0 * 768**3 / 0.5, 3.0 * 4 * 12_000_000 / 0.5)
    assert machine_peaks(1, cache=tmp_path, clock=never) == first


@pytest.mark.slow
def test_what_is_torn_is_measured_again(tmp_path: Path) -> None:
    ticks = itertools.count()
    first = machine_peaks(1, cache=tmp_path, clock=lambda: next(ticks) * 0.5)
    (path,) = tmp_path.iterdir()
    for torn in ("", "{", '{"flops_per_s": 1}', '{"flops_per_s": -1, "bytes_per_s": 1}'):
        path.write_text(torn, encoding="utf-8")
        assert machine_peaks(1, cache=tmp_path, clock=lambda: next(ticks) * 0.5) == first
    assert machine_peaks(1, cache=tmp_path, clock=never) == first
