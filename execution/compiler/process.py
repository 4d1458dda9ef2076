"""A helper process of the compiler: spawned, in a process group of its own, at low priority, watched and killable.

It stays in the session of its parent: Linux shares the CPU between sessions before it looks at priorities (autogroup), so
that a helper in a session of its own would weigh as much as the server. It is killed with its parent: by the kernel,
and by a lifeline that it watches; then its whole group goes.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_TAIL_BYTES = 16384
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_HEADER = struct.Struct("<Q")
_WAIT_S = 5.0


class Helper:
    """One process. Used by one thread, which must live as long as the process: the kernel kills it with the thread."""

    def __init__(
        self, mode: str, memory_bytes: int, env: Mapping[str, str] | None = None, priority: str = "low"
    ) -> None:
        """`mode`: as execution.compiler.worker knows it. Raises OSError when it cannot be started."""
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        lifeline, self._life = os.pipe()
        command = [sys.executable, "-P", "-m", "execution.compiler.worker", mode]
        command += map(str, (theirs_in, theirs_out, lifeline, os.getpid(), memory_bytes, priority))
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                command,
                env=_environment(env or {}),
                pass_fds=(theirs_in, theirs_out, lifeline),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,
                close_fds=True,
            )
        except BaseException:
            for handle in (self._to, self._from, self._life):
                os.close(handle)
            raise
        finally:
            for handle in (theirs_in, theirs_out, lifeline):
                os.close(handle)
        assert self._process.stdout is not None  # noqa: S101 - asked for
        self._said = self._process.stdout.fileno()
        os.set_blocking(self._said, False)
        os.set_blocking(self._from, False)
        os.set_blocking(self._to, False)
        self._pending = self._out = b""
        self._tail = b""
        self._line = b""
        self._closed = False
        self._stopped = False
        self._stopped_at_s = self._halted_s = 0.0
        self.jobs = 0
        self.idle_since_s = time.monotonic()

    @property
    def pid(self) -> int:
        """Of the process, which leads its group."""
        return self._process.pid

    def send(self, request: Any) -> bool:
        """One request; the rest of a long one goes out in `receive`. False: it is dead."""
        self._tail = self._line = b""
        data = pickle.dumps(request)
        self._out = _HEADER.pack(len(data)) + data
        self.jobs += 1
        return self._push()

    def _push(self) -> bool:
        """As much as the pipe takes now; it may be that nobody reads: the helper starts, or is halted."""
        try:
            while self._out:
                self._out = self._out[os.write(self._to, self._out) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._out = b""
            return False
        return True

    def receive(self, timeout_s: float) -> tuple[list[dict[str, Any]], list[str], bool]:
        """Messages and printed lines that came within the time, and whether it has closed its end."""
        writing = [self._to] if self._out else []
        ready, writable, _ = select.select([self._from, self._said], writing, [], timeout_s)
        if writable:
            self._push()
        ended = False
        lines = []
        if self._said in ready:
            data = _read(self._said)[0]
            self._tail = (self._tail + data)[-_TAIL_BYTES:]
            lines = self._notes(data)
        if self._from in ready:
            data, ended = _read(self._from)
            self._pending += data
        *whole, self._pending = self._pending.split(b"\n")
        messages = []
        for text in whole:
            with contextlib.suppress(ValueError):  # a broken helper may write anything
                message = json.loads(text)
                if isinstance(message, dict):
                    messages.append(message)
        return messages, lines, ended

    def _notes(self, data: bytes) -> list[str]:
        """Lines for people: those that begin with `progress:`."""
        *whole, self._line = (self._line + data)[-_TAIL_BYTES:].split(b"\n")
        lines = (line.decode("utf-8", "replace") for line in whole)
        return [line.removeprefix("progress:").strip() for line in lines if line.startswith("progress:")]

    def said(self) -> str:
        """The end of what it printed during this job."""
        with contextlib.suppress(OSError):
            self._tail = (self._tail + _read(self._said)[0])[-_TAIL_BYTES:]
        return self._tail.decode("utf-8", "replace").strip()

    def tree(self) -> list[int]:
        """It and all that descend from it."""
        return [self.pid, *descendants(self.pid)]

    def used(self) -> tuple[float, int]:
        """CPU seconds since it was started, and resident bytes, of the whole tree."""
        cpu_s, rss_bytes = 0.0, 0
        for pid in self.tree():
            one = _usage(pid)
            cpu_s += one[0]
            rss_bytes += one[1]
        return cpu_s, rss_bytes

    def halt(self) -> None:
        """Stop the whole tree where it is."""
        if not self._stopped:
            self._stopped = True
            self._stopped_at_s = time.monotonic()
            self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        if self._stopped:
            self._stopped = False
            self._halted_s += time.monotonic() - self._stopped_at_s
            self._signal(signal.SIGCONT)

    def halted_s(self) -> float:
        """How long it was stopped in all."""
        return self._halted_s + (time.monotonic() - self._stopped_at_s if self._stopped else 0.0)

    def kill_children(self) -> None:
        """SIGKILL to all that descend from it, but not to itself."""
        _kill_all(lambda: descendants(self.pid))

    def fate(self) -> str:
        """How it ended, in words."""
        try:
            code = self._process.wait(_WAIT_S)
        except subprocess.TimeoutExpired:
            return "does not answer any more"
        return ending(code)

    def close(self) -> None:
        """Kill the whole tree and let go; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._process.poll() is None:
            _kill_all(self.tree)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # what has left its parents behind
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_WAIT_S)
        for handle in (self._to, self._from, self._life):
            os.close(handle)
        assert self._process.stdout is not None  # noqa: S101 - asked for
        self._process.stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
        for pid in descendants(self.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def ending(code: int) -> str:
    """An exit status, in words."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on."""
    found = []
    for task in _names(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def _names(folder: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield from os.listdir(folder)  # noqa: PTH208 - names only


def _usage(pid: int) -> tuple[float, int]:
    """CPU seconds with those of children that are over, and resident bytes."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0
    return sum(map(int, fields[11:15])) * _TICK_S, int(fields[21]) * _PAGE_BYTES


def _kill_all(living: Any) -> None:
    """Stop them first, so that none can start another while they are killed."""
    seen: set[int] = set()
    while fresh := [pid for pid in living() if pid not in seen]:
        for pid in fresh:
            seen.add(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGSTOP)
    for pid in seen:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _read(handle: int) -> tuple[bytes, bool]:
    """All that is there, and whether it is the end."""
    data = b""
    while True:
        try:
            block = os.read(handle, 65536)
        except BlockingIOError:
            return data, False
        if not block:
            return data, True
        data += block


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours and `extra`, with this very tree importable."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1", **extra}
    paths = [str(_ROOT), *filter(None, [env.get("PYTHONPATH")])]
    env["PYTHONPATH"] = os.pathsep.join(paths)
    return env
