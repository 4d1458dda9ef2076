"""A worker and the thread that asks it on one CPU.

They take turns anyway, and waking a process on another, idle CPU costs some ten times as much as switching to
it (measured on a virtual machine: 100 us against 8).
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
"""Of this process when it started."""
_SETTLED_S = 0.25
"""How long the load of the CPUs is watched before a move."""
_WORTH_IT = 0.3
"""A CPU must be idle for so much more of the time to be moved to."""


class SharedCpu:
    """Binds the calling thread and a worker to one CPU, and follows the load: `settle` now and then."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        mine = os.sched_getaffinity(0) if _CPUS else set()
        current = _current_cpu()
        self._cpu = current if current in mine else min(mine, default=0)
        self._since = time.monotonic()
        self._idle = _idle_s()
        self._bind()

    def settle(self) -> None:
        """Move to another CPU when this one is crowded and that one is not."""
        elapsed = time.monotonic() - self._since
        if elapsed < _SETTLED_S or len(_CPUS) < 2:
            return
        idle = _idle_s()
        share = {cpu: (idle.get(cpu, 0.0) - self._idle.get(cpu, 0.0)) / elapsed for cpu in _CPUS}
        freest = max(_CPUS, key=lambda cpu: share[cpu])
        if share[freest] > share.get(self._cpu, 0.0) + _WORTH_IT:
            self._cpu = freest
            self._bind()
        self._since, self._idle = time.monotonic(), idle

    def close(self) -> None:
        """Let the calling thread run anywhere again."""
        release(0)

    def _bind(self) -> None:
        if _CPUS:
            with contextlib.suppress(OSError):  # a worker that just died, or a CPU that went away
                os.sched_setaffinity(self._pid, {self._cpu})
                os.sched_setaffinity(0, {self._cpu})


def release(pid: int) -> None:
    """Let a process (0: the calling thread) run on all CPUs."""
    if _CPUS:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(pid, _CPUS)


def _current_cpu() -> int:
    """The CPU that the calling thread last ran on; -1 where that is not told."""
    stat = Path("/proc/thread-self/stat")
    if not stat.exists():
        return -1
    return int(stat.read_text(encoding="ascii").rpartition(")")[2].split()[36])  # field 39 of proc(5)


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
