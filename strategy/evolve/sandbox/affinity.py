"""A worker and the thread that asks it on one CPU.

They take turns anyway, and waking a process on another, idle CPU costs some ten times as much as switching to
it (measured on a virtual machine: 100 us against 8).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ALL_CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
"""Of this process when it started."""
_WATCHED_S = 0.25
"""How long the load of the CPUs is watched before a move."""
_WORTH_IT = 0.3
"""A CPU must be idle for so much more of the time to be moved to."""


class IdleWatch:
    """How idle each CPU has been since it was last looked at."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.start()

    def start(self) -> None:
        """Watch from now on."""
        self._since, self._idle_s = self._clock(), _idle_s()

    @property
    def elapsed_s(self) -> float:
        """Seconds of watching."""
        return self._clock() - self._since

    def shares(self) -> dict[int, float]:
        """Idle share of the time that was watched, by CPU; the watch starts again."""
        before, elapsed_s = self._idle_s, self.elapsed_s
        self.start()
        return {cpu: (idle - before.get(cpu, idle)) / elapsed_s for cpu, idle in self._idle_s.items()}


class SharedCpu:
    """Binds the thread that asks and a worker to one CPU, and follows the load: `settle` now and then.

    Of several workers that one thread asks, each follows the thread's CPU; the last one to go sets it free.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._thread = threading.get_native_id()
        self._watch = IdleWatch()
        self._hold()

    def settle(self) -> None:
        """Move to another CPU when this one is crowded and that one is not; follow the asking thread, if it is
        another one by now."""
        if threading.get_native_id() != self._thread:
            self.close()
            self._thread = threading.get_native_id()
            self._hold()
        elif current_cpu() != self._cpu:  # another worker of this thread has moved it
            self._bind(current_cpu())
        if self._watch.elapsed_s < _WATCHED_S or len(ALL_CPUS) < 2:
            return
        share = self._watch.shares()
        freest = max(ALL_CPUS, key=lambda cpu: share.get(cpu, 0.0))
        if share.get(freest, 0.0) > share.get(self._cpu, 0.0) + _WORTH_IT:
            self._bind(freest)

    def close(self) -> None:
        """Let the asking thread run anywhere again, unless it asks another worker too."""
        with _HOLDING:
            _HELD[self._thread] -= 1
            free = _HELD[self._thread] <= 0
            if free:
                del _HELD[self._thread]
        if free:
            bind(self._thread, ALL_CPUS)

    def _hold(self) -> None:
        with _HOLDING:
            _HELD[self._thread] += 1
        allowed = os.sched_getaffinity(0) if ALL_CPUS else set()
        current = current_cpu()
        self._bind(current if current in allowed else min(allowed, default=0))

    def _bind(self, cpu: int) -> None:
        self._cpu = cpu
        for who in (self._thread, self._pid) if ALL_CPUS else ():
            bind(who, {cpu})


_HOLDING = threading.Lock()
_HELD: Counter[int] = Counter()
"""Workers that share the CPU of a thread, by its native id."""


def bind(pid: int, cpus: set[int]) -> None:
    """Let a process run on these CPUs only; 0 (a worker that cannot be seen from here) is nobody."""
    if cpus and pid > 0:
        with contextlib.suppress(OSError):  # it just died, or the CPU went away
            os.sched_setaffinity(pid, cpus)


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
