"""Short measurements of this machine: memory bandwidth, arithmetic, loading. About two seconds; the best of several runs,
since other load can only slow them down.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from physical.inventory.facts import Measured, NumaFacts

_BLOCK_BYTES = 64 << 20
"""A thread's share: beyond the caches."""
_RUNS = 5
_MATRIX = 1024
_FILE_BYTES = 96 << 20


def measure(domains: Sequence[NumaFacts]) -> Measured:
    """Time copies in each memory domain, between two of them, matrix products, and reading a file."""
    own = tuple(copy_bytes_per_s(domain.cpus, domain.cpus) for domain in domains)
    between = None
    if len(domains) > 1 and domains[0].cpus and domains[1].cpus:
        # Every byte is read once over the link and written at home: half of what is moved.
        between = copy_bytes_per_s(domains[1].cpus, domains[0].cpus) / 2
    return Measured(
        memory_bytes_per_s=own,
        numa_bytes_per_s=between,
        fp32_flops=product_flops(np.float32),
        fp64_flops=product_flops(np.float64),
        load_bytes_per_s=load_bytes_per_s(),
    )


def copy_bytes_per_s(cpus: Sequence[int], memory_of: Sequence[int], *, runs: int = _RUNS) -> float:
    """Bytes read and written per second when these CPUs copy, all at once, from memory that others touched first."""
    allowed = sorted(os.sched_getaffinity(0) & set(cpus)) or sorted(os.sched_getaffinity(0))
    others = sorted(os.sched_getaffinity(0) & set(memory_of)) or allowed
    count = len(allowed)
    block = max(8 << 20, min(_BLOCK_BYTES, (1 << 30) // count))
    sources: list[Any] = [None] * count
    began = threading.Barrier(count + 1)
    ended = threading.Barrier(count + 1)

    def touch(index: int) -> None:
        os.sched_setaffinity(0, {others[index % len(others)]})
        sources[index] = np.ones(block // 8)

    def copy(index: int) -> None:
        os.sched_setaffinity(0, {allowed[index]})
        target = np.empty_like(sources[index])
        target.fill(0.0)
        for _ in range(runs):
            began.wait()
            np.copyto(target, sources[index])
            ended.wait()

    for index in range(count):
        thread = threading.Thread(target=touch, args=(index,))
        thread.start()
        thread.join()
    threads = [threading.Thread(target=copy, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    best = float("inf")
    for _ in range(runs):
        began.wait()
        started = time.perf_counter()
        ended.wait()
        best = min(best, time.perf_counter() - started)
    for thread in threads:
        thread.join()
    return 2.0 * block * count / best


def product_flops(dtype: Any, *, size: int = _MATRIX, runs: int = _RUNS) -> float:
    """Operations per second of a matrix product with numpy's BLAS, on as many threads as it takes."""
    a = np.ones((size, size), dtype=dtype)
    b = np.ones((size, size), dtype=dtype)
    out = a @ b
    best = float("inf")
    for _ in range(runs):
        started = time.perf_counter()
        np.matmul(a, b, out=out)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def load_bytes_per_s(*, nbytes: int = _FILE_BYTES, runs: int = 3) -> float:
    """One reader, a file that is in the page cache, into memory that is there already."""
    target = memoryview(bytearray(nbytes))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        path.write_bytes(bytes(nbytes))
        best = float("inf")
        for _ in range(runs):
            started = time.perf_counter()
            with path.open("rb", buffering=0) as file:
                read = 0
                while read < nbytes:
                    got = file.readinto(target[read:])
                    if not got:
                        break
                    read += got
            best = min(best, time.perf_counter() - started)
    return nbytes / best
