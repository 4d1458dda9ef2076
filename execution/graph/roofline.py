"""What this machine can do at most: measured once in a second, kept by processor and thread count.

    peaks = machine_peaks(threads=1)
    roofline_s(graph.cost("mm"), peaks)          # the least time that a node can take here

FLOP/s by products of square matrices of 768 in float32, bytes/s by adding two arrays that no cache holds. Both are what
torch reaches here, not what the data sheet says.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from execution.compiler.machine import this_machine
from execution.engines.models import cache_directory
from execution.graph.cost import Peaks

_SIZE = 768
_ELEMENTS = 12_000_000
"""48 MB an array."""


def machine_peaks(
    threads: int = 1, *, cache: Path | None = None, clock: Callable[[], float] = time.perf_counter
) -> Peaks:
    """Peaks at this thread count, from the cache or measured now (and written there if that can be)."""
    folder = cache or cache_directory() / "roofline"
    path = folder / f"{this_machine().digest}-{threads}.json"
    known = _read(path)
    if known is not None:
        return known
    peaks = measure_peaks(threads, clock)
    _write(path, peaks)
    return peaks


def measure_peaks(threads: int, clock: Callable[[], float] = time.perf_counter) -> Peaks:
    """Best of some short runs at this thread count."""
    import torch  # noqa: PLC0415 a cached answer needs no torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            left, right = torch.ones(_SIZE, _SIZE), torch.ones(_SIZE, _SIZE)
            product_s = _best_s(lambda: torch.mm(left, right), clock, 8)
            first, second = torch.ones(_ELEMENTS), torch.ones(_ELEMENTS)
            made = torch.empty(_ELEMENTS)
            sum_s = _best_s(lambda: torch.add(first, second, out=made), clock, 5)
    finally:
        torch.set_num_threads(before)
    return Peaks(2.0 * _SIZE**3 / product_s, 3.0 * 4 * _ELEMENTS / sum_s)


def _best_s(run: Callable[[], object], clock: Callable[[], float], repeats: int) -> float:
    run()
    best = float("inf")
    for _ in range(repeats):
        start = clock()
        run()
        best = min(best, clock() - start)
    return max(best, 1e-9)


def _read(path: Path) -> Peaks | None:
    """None for no file, or one that is torn or of another form."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        peaks = Peaks(float(told["flops_per_s"]), float(told["bytes_per_s"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return peaks if peaks.flops_per_s > 0 and peaks.bytes_per_s > 0 else None


def _write(path: Path, peaks: Peaks) -> None:
    """Whole or not at all; a folder that cannot be written to costs a measurement next time."""
    text = json.dumps({"flops_per_s": peaks.flops_per_s, "bytes_per_s": peaks.bytes_per_s})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            file.write(text)
        os.replace(file.name, path)  # noqa: PTH105 atomic over an existing file on every system
    except OSError:
        return
