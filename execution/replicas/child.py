"""The process of a worker: started with one end of a socket pair, watched, and ended for good."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_ROOT = Path(__file__).resolve().parents[2]
_TAIL_BYTES = 8192
_POLL_S = 0.005
_CLOSED_TO_ENDED_S = 0.02
"""A process that dies closes its files, and microseconds later it is dead."""


class Child:
    """A worker process, in a session of its own. Its output is read and the end of it kept for error messages."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self._process = process
        self.socket = sock
        """Our end."""
        self._tail = _Tail()
        self._pipe: asyncio.BaseTransport | None = None
        self._killed = False

    @classmethod
    async def start(cls, python: str | Sequence[str], env: Mapping[str, str]) -> Child:
        """Start one. Raises OSError when the interpreter cannot be run."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        interpreter = [python] if isinstance(python, str) else list(python)
        command = [
            *interpreter,
            "-P",
            "-m",
            "execution.replicas.worker",
            str(theirs.fileno()),
            str(os.getpid()),
        ]
        try:
            process = subprocess.Popen(  # noqa: S603 - a few ms; our own module, no shell
                command,
                env=_environment(env),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                close_fds=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        child = cls(process, ours)
        assert process.stdout is not None  # noqa: S101 - asked for
        await child._read(process.stdout)
        return child

    async def _read(self, pipe: IO[bytes]) -> None:
        try:
            self._pipe, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: self._tail, pipe)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Of the process, which leads its own group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Not known to be over."""
        return self._process.returncode is None

    def said(self) -> str:
        """The end of what it has written."""
        return self._tail.text()

    def fate(self) -> str:
        """How it ended, once its socket has closed."""
        try:
            code = self._process.wait(_CLOSED_TO_ENDED_S)
        except subprocess.TimeoutExpired:
            return "has closed its socket"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    async def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False: it still runs."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        while self._process.poll() is None:
            if loop.time() >= deadline_s:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def terminate(self) -> None:
        """SIGTERM to the worker."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to it and all that it has started; `wait` collects it. Idempotent."""
        if not self._killed:  # once: later its number may be another's
            self._killed = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of its output."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


class _Tail(asyncio.Protocol):
    """Keeps the end of what is read."""

    def __init__(self) -> None:
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data = (self._data + data)[-_TAIL_BYTES:]

    def text(self) -> str:
        return self._data.decode("utf-8", "replace").strip()


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours and `extra`, with this very tree importable."""
    env = {**os.environ, **extra}
    paths = [str(_ROOT), *filter(None, [env.get("PYTHONPATH")])]
    env["PYTHONPATH"] = os.pathsep.join(paths)
    env.setdefault("PYTHONUNBUFFERED", "1")
    return env


DEFAULT_PYTHON = sys.executable
