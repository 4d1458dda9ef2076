"""Processes as /proc shows them; a process is told from a later one of the same number by when it began."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from physical.gate.actuator import ActuatorError

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """One that was there when asked."""

    pid: int
    began: int
    """In clock ticks since the machine started."""

    def alive(self) -> bool:
        """Still there, and no zombie."""
        found = find(self.pid)
        return found is not None and found.began == self.began

    def threads(self) -> list[int]:
        """Its threads' numbers; empty once it is gone."""
        try:
            return sorted(int(entry.name) for entry in (_PROC / str(self.pid) / "task").iterdir())
        except OSError:
            return []


def find(pid: int) -> Process | None:
    """A living process; None for none, or a zombie."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in parentheses may hold anything: what follows its end is regular.
    values = text.rpartition(")")[2].split()
    if values[0] in {"Z", "X"}:
        return None
    return Process(pid, int(values[19]))


def there(pid: int) -> Process:
    """A living process. Raises ActuatorError."""
    process = find(pid)
    if process is None:
        raise ActuatorError(f"there is no process {pid}")
    return process


def with_variable(name: str) -> list[tuple[Process, str]]:
    """(process, value) of those leading a session that have an environment variable, oldest first. Others' processes
    cannot be read and are left out."""
    found = []
    wanted = name.encode() + b"="
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        try:
            if os.getsid(pid) != pid:  # what it has started itself inherits its environment
                continue
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        for item in environment.split(b"\0"):
            if item.startswith(wanted):
                process = find(pid)
                if process is not None:
                    found.append((process, item[len(wanted) :].decode("utf-8", "replace")))
                break
    return sorted(found, key=lambda pair: (pair[0].began, pair[0].pid))


def virtual_bytes(pid: int) -> int:
    """Address space in use; 0 where it cannot be told."""
    try:
        pages = int((_PROC / str(pid) / "statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def end(process: Process, grace_s: float) -> None:
    """SIGTERM to its group, SIGKILL after a grace; returns once it is gone. Raises ActuatorError when it cannot."""
    for sign, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 30.0)):
        if not process.alive():
            break
        try:
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, sign)
            else:
                os.kill(process.pid, sign)
        except ProcessLookupError:
            break
        except PermissionError as error:
            raise ActuatorError(f"may not end process {process.pid}") from error
        deadline_s = time.monotonic() + patience_s
        while process.alive() and time.monotonic() < deadline_s:
            _reap(process.pid)
            time.sleep(0.005)
    _reap(process.pid)
    if process.alive():
        raise ActuatorError(f"process {process.pid} does not end")


def _reap(pid: int) -> None:
    """Collect it where it is our own child."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
