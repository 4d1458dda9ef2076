"""What this machine can do at most: bytes read a second for working sets of a size, multiplications and additions a second.

Measured by a few loops in C (as STREAM does; McCalpin, 1995), compiled for this processor: the read is the best of one to
eight streams side by side, in huge pages. Threads each have a part of their own.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LEAST_BYTES = 1 << 16
_MOST_BYTES = 1 << 28
_STREAMS = (1, 2, 4, 8)
_TRIES, _EACH_S = 5, 0.004
_SOURCE = r"""
typedef float v8 __attribute__((vector_size(32), aligned(4)));
#define READ(S) \
  case S: { long part = n / S; for (int r = 0; r < repeats; r++) \
    for (long i = 0; i + 16 <= part; i += 16) for (int s = 0; s < S; s++) { \
      const float* q = p + s * part + i; \
      sum[s & 3] += *(const v8*)q; sum[4 + (s & 3)] += *(const v8*)(q + 8); } break; }
float read_all(const float* p, long n, int streams, int repeats) {
  v8 sum[8] = {0};
  switch (streams) { READ(1) READ(2) READ(4) READ(8) }
  float total = 0;
  for (int i = 0; i < 8; i++) for (int j = 0; j < 8; j++) total += sum[i][j];
  return total;
}
float multiply_add(long turns, float factor) {
  v8 x[12], f, one;
  for (int j = 0; j < 8; j++) { f[j] = factor; one[j] = 1; }
  for (int i = 0; i < 12; i++) x[i] = one * (float)i;
  for (long t = 0; t < turns; t++) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; i++) x[i] = x[i] * f + one;
  }
  float total = 0;
  for (int i = 0; i < 12; i++) for (int j = 0; j < 8; j++) total += x[i][j];
  return total;
}
"""


class Roofs:
    """Measured when first asked for, then remembered."""

    def __init__(self, scratch: Path) -> None:
        """Compiles. Raises OSError, subprocess.SubprocessError."""
        compiler = next(name for name in ("gcc", "g++", "clang") if shutil.which(name))
        source, library = scratch / "roofs.c", scratch / "roofs.so"
        source.write_text(_SOURCE, encoding="utf-8")
        options = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", "-x", "c"]
        command = [compiler, *options, "-o", str(library), str(source)]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own text
        self._library = ctypes.CDLL(str(library))
        self._library.read_all.restype = self._library.multiply_add.restype = ctypes.c_float
        self._known: dict[tuple[str, int, int], float] = {}

    def read_bytes_s(self, working_set: float, threads: int) -> float:
        """Bytes that so many threads can read each second, again and again from memory of that size together."""
        size = 1 << math.ceil(math.log2(min(max(working_set, LEAST_BYTES), _MOST_BYTES)))
        key = ("read", size, threads)
        if key not in self._known:
            self._known[key] = self._read(size, threads)
        return self._known[key]

    def flops_s(self, threads: int) -> float:
        """Multiplications and additions each second, as fused vectors in registers."""
        key = ("flops", 0, threads)
        if key not in self._known:
            turns = 400_000
            calls = [(self._library.multiply_add, (ctypes.c_long(turns), ctypes.c_float(0.5)))] * threads
            self._known[key] = threads * turns * 12 * 8 * 2 / min(_seconds(calls) for _ in range(_TRIES))
        return self._known[key]

    def _read(self, size: int, threads: int) -> float:
        import torch  # noqa: PLC0415

        from execution.compiler.backends.tvm import pages  # noqa: PLC0415

        part = size // threads // 4 // 128 * 128
        memory = pages.zeros((threads * part,), torch.empty(0))
        memory.fill_(1.0)
        least_s = math.inf
        for streams in _STREAMS:
            repeats = 1
            while True:
                calls = [
                    (self._library.read_all, (ctypes.c_void_p(memory.data_ptr() + 4 * part * t),
                                              ctypes.c_long(part), streams, repeats))
                    for t in range(threads)
                ]  # fmt: skip
                took = _seconds(calls)
                if took > _EACH_S:
                    break
                repeats *= 2
            took = min(took, *(_seconds(calls) for _ in range(_TRIES)))
            least_s = min(least_s, took / repeats)
        return threads * part * 4 / least_s


def _seconds(calls: list[tuple[Any, tuple[Any, ...]]]) -> float:
    """Of all calls at once, each in a thread of its own."""
    if len(calls) == 1:
        function, arguments = calls[0]
        began = time.perf_counter()
        function(*arguments)
        return time.perf_counter() - began
    with ThreadPoolExecutor(len(calls)) as pool:
        list(pool.map(time.sleep, [0.0] * len(calls)))
        began = time.perf_counter()
        for done in [pool.submit(function, *arguments) for function, arguments in calls]:
            done.result()
        return time.perf_counter() - began
