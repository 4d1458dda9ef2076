"""A worker and the thread that asks it on one CPU.

They take turns anyway, and waking a process on another, idle CPU costs some ten times as much as switching to
it (measured on a virtual machine: 100 us against 8).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

ALL_CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
"""Of this process when it started."""
_SETTLED_S = 0.25
"""How long the load of the CPUs is watched before a move."""
_WORTH_IT = 0.3
"""A CPU must be idle for so much more of the time to be moved to."""


class SharedCpu:
    """Binds the calling thread and a worker to one CPU, and follows the load: `settle` now and then."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        mine = os.sched_getaffinity(0) if ALL_CPUS else set()
        current = current_cpu()
        self._cpu = current if current in mine else min(mine, default=0)
        self._since = time.monotonic()
        self._idle = _idle_s()
        self._bind()

    def settle(self) -> None:
        """Move to another CPU when this one is crowded and that one is not."""
        elapsed = time.monotonic() - self._since
        if elapsed < _SETTLED_S or len(ALL_CPUS) < 2:
            return
        idle = _idle_s()
        share = {cpu: (idle.get(cpu, 0.0) - self._idle.get(cpu, 0.0)) / elapsed for cpu in ALL_CPUS}
        freest = max(ALL_CPUS, key=lambda cpu: share[cpu])
        if share[freest] > share.get(self._cpu, 0.0) + _WORTH_IT:
            self._cpu = freest
            self._bind()
        self._since, self._idle = time.monotonic(), idle

    def close(self) -> None:
        """Let the calling thread run anywhere again."""
        release(0)

    def _bind(self) -> None:
        if ALL_CPUS:
            with contextlib.suppress(OSError):  # a worker that just died, or a CPU that went away
                os.sched_setaffinity(0, {self._cpu})
            bind(self._pid, self._cpu)


def release(pid: int) -> None:
    """Let a process (0: the calling thread) run on all CPUs."""
    if ALL_CPUS:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(pid, ALL_CPUS)


def bind(pid: int, cpu: int) -> None:
    """Let a process run on one CPU only; 0 (a worker that cannot be seen from here) is nobody."""
    if ALL_CPUS and pid > 0:
        with contextlib.suppress(OSError):  # it just died, or the CPU went away
            os.sched_setaffinity(pid, {cpu})


def _getcpu() -> Callable[[], int]:
    try:
        found = ctypes.PyDLL(None).sched_getcpu  # a call of 0.1 us: the lock of the interpreter is kept
    except (OSError, AttributeError):
        return lambda: 0
    found.argtypes, found.restype = (), ctypes.c_int
    return found


current_cpu = _getcpu()
"""The CPU that the calling thread runs on; 0 where that is not told."""


def _idle_s() -> dict[int, float]:
    """Seconds that each CPU has been idle since the start of the machine."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return {}
    tick = os.sysconf("SC_CLK_TCK")
    found: dict[int, float] = {}
    for line in stat.read_text(encoding="ascii").splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit():
            found[int(name[3:])] = (int(fields[3]) + int(fields[4])) / tick
    return found
