"""Worker processes from the outside: start, exchange frames within a deadline, kill, keep a spare.

Everything that comes from a worker is foreign: bounded in size, and decoded by `struct` and `json` only.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import pickle  # towards the worker only
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import structlog

import strategy
from loop.contracts import PolicyCrashed, PolicyError, PolicyTimeout
from strategy.evolve.sandbox.affinity import release
from strategy.evolve.sandbox.limits import SandboxLimits
from strategy.evolve.worker import wire

_log = structlog.get_logger(__name__)
_PIPE_BYTES = 1 << 20
_BOOT = (
    "import sys; sys.path[:] = {paths!r}; from strategy.evolve.worker.main import main; main(sys.argv[1:])"
)
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # sets of strings iterate alike in every worker: replays stay exact
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class PolicyRaisedError(PolicyError):
    """The policy's code raised; `line` is the line of its source (0: unknown), `kind` the exception's type."""

    def __init__(self, message: str, kind: str, line: int) -> None:
        super().__init__(message)
        self.kind = kind
        self.line = line

    def __reduce__(self) -> tuple[type[PolicyRaisedError], tuple[str, str, int]]:
        return type(self), (str(self), self.kind, self.line)


class WorkerProcess:
    """One locked process. Its methods raise PolicyTimeout, PolicyCrashed and PolicyError; after the first
    two it must be killed. It starts in the background: `wait_ready` collects what it reports."""

    def __init__(self, limits: SandboxLimits, entry: str = "", init_payload: bytes = b"") -> None:
        self._limits = limits
        self.layers: tuple[str, ...] = ()
        """What holds it, known once it is ready."""
        child_read, self.write_fd = os.pipe()
        self.read_fd, child_write = os.pipe()
        for descriptor in (self.write_fd, self.read_fd):
            os.set_blocking(descriptor, False)
            with contextlib.suppress(OSError, AttributeError):  # a bigger pipe is a convenience
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            self._process = _start(child_read, child_write)
        except BaseException:
            os.close(self.write_fd)
            os.close(self.read_fd)
            raise
        finally:
            os.close(child_read)
            os.close(child_write)
        self.readable = select.poll()
        self.readable.register(self.read_fd, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(self.write_fd, select.POLLOUT)
        self._ready = False
        self._dead = False
        _ALIVE.add(self)
        setup = wire.Setup(limits.memory_bytes, limits.cpu_s, entry, init_payload)
        try:
            self.send(wire.SETUP, pickle.dumps(setup), time.monotonic() + limits.start_s)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Of the process, which leads a process group of its own."""
        return self._process.pid

    @property
    def ready(self) -> bool:
        """Whether it is known to be locked."""
        return self._ready

    def wait_ready(self, deadline: float | None = None) -> None:
        """Wait until the worker is locked; log each layer that the kernel did not grant."""
        if self._ready:
            return
        if deadline is None:
            deadline = time.monotonic() + self._limits.start_s
        self.started(self.receive(deadline))

    def started(self, reply: bytes) -> None:
        """Take in the first reply: the report of the lockdown."""
        report = json.loads(reply)
        self.layers = tuple(str(layer) for layer in report["layers"])
        for layer, reason in report["missing"]:
            _log.warning("sandbox layer missing", layer=layer, reason=reason, pid=self.pid)
        self._ready = True

    def send(self, kind: int, body: bytes, deadline: float) -> None:
        """Hand over one request; `deadline` on `time.monotonic`."""
        if kind != wire.SETUP and self.readable.poll(0):  # it has spoken, or its end of the pipe is closed
            self.read_now(0)
            raise PolicyCrashed("the worker broke the protocol: it spoke without being asked")
        data: memoryview | bytes = wire.REQUEST_HEAD.pack(len(body) + 1, kind) + body
        while data:
            try:
                sent = os.write(self.write_fd, data)
            except BlockingIOError:
                _wait(self._writable, deadline, "the worker takes no input")
            except OSError as error:
                raise self._crashed() from error
            else:
                data = memoryview(data)[sent:]

    def receive(self, deadline: float, limit: int = wire.MAX_REPLY_BYTES, begun: bytes = b"") -> bytes:
        """The payload of the next reply; what was read of it already is `begun`."""
        data = bytearray(begun)
        missing = missing_of(data, limit)
        while missing > 0:
            try:
                part = os.read(self.read_fd, min(1 << 20, max(missing, wire.READ_BYTES)))
            except BlockingIOError:
                _wait(self.readable, deadline, "no answer")
                continue
            except OSError as error:
                raise self._crashed() from error
            if not part:
                raise self._crashed()
            data += part
            missing = missing_of(data, limit)
        if missing < 0:
            raise PolicyCrashed("the worker broke the protocol: more than one answer to one question")
        return payload_of(bytes(data))

    def read_now(self, timeout_ms: int) -> bytes:
        """What the worker has to say within `timeout_ms`, as it lies in the pipe: the start of a frame."""
        if not self.readable.poll(timeout_ms):
            raise PolicyTimeout(f"no answer within the deadline of {timeout_ms} ms")
        try:
            data = os.read(self.read_fd, wire.READ_BYTES)
        except OSError as error:
            raise self._crashed() from error
        if not data:
            raise self._crashed()
        return data

    def ask(self, kind: int, body: bytes, timeout_s: float, limit: int = wire.MAX_REPLY_BYTES) -> bytes:
        """One question, one answer."""
        deadline = time.monotonic() + timeout_s
        self.wait_ready()
        self.send(kind, body, deadline)
        return self.receive(deadline, limit)

    def kill(self) -> None:
        """End the process and all that it may have started; idempotent."""
        if self._dead:
            return
        self._dead = True
        _ALIVE.discard(self)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self.write_fd)
        os.close(self.read_fd)

    def _crashed(self) -> PolicyCrashed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.5)
        code = self._process.returncode
        how = "closed its pipe" if code is None else _how_it_ended(code)
        return PolicyCrashed(f"the worker process {how}")


class WorkerSupply:
    """Keeps locked workers ready that have no policy yet, so that replacing one costs no start-up."""

    def __init__(self, limits: SandboxLimits | None = None, spares: int = 1) -> None:
        self.limits = limits or SandboxLimits()
        self._spares = [WorkerProcess(self.limits) for _ in range(spares)]
        self._target = spares

    def take(self) -> WorkerProcess:
        """A worker that is ready; the next spare starts in the background."""
        worker = self._spares.pop(0) if self._spares else WorkerProcess(self.limits)
        while len(self._spares) < self._target:
            self._spares.append(WorkerProcess(self.limits))
        try:
            worker.wait_ready()
        except BaseException:
            worker.kill()
            raise
        return worker

    def close(self) -> None:
        """End all spares."""
        self._target = 0
        while self._spares:
            self._spares.pop().kill()

    def __enter__(self) -> WorkerSupply:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def missing_of(data: bytes | bytearray, limit: int) -> int:
    """How many bytes of a frame have not come yet; negative when there is more than one frame.

    Raises:
        PolicyCrashed: the frame is longer than allowed, which only a broken worker sends.
    """
    if len(data) < wire.HEADER.size:
        return wire.HEADER.size - len(data)
    length = wire.HEADER.unpack_from(data)[0]
    if not 1 <= length <= limit:
        raise PolicyCrashed(f"the worker broke the protocol: an answer of {length} bytes, at most {limit}")
    return int(length) + wire.HEADER.size - len(data)


def payload_of(frame: bytes) -> bytes:
    """What a whole frame says, if it went well.

    Raises:
        PolicyRaisedError: the worker reports an exception.
    """
    payload = frame[wire.REQUEST_HEAD.size :]
    status = frame[wire.HEADER.size]
    if status == wire.OK:
        return payload
    if status != wire.FAILED:
        raise PolicyCrashed(f"the worker broke the protocol: status {status}")
    report = parse(payload)
    if not isinstance(report, dict):
        raise PolicyCrashed("the worker broke the protocol: a failure without a report")
    kind, line = str(report.get("type"))[:80], report.get("line")
    line = line if line.__class__ is int else 0
    message = str(report.get("message"))[:500]
    where = f" (line {line})" if line else ""
    raise PolicyRaisedError(f"{kind}: {message}{where}", kind, line)


def parse(payload: bytes) -> Any:
    """JSON from a worker.

    Raises:
        PolicyError: it is none.
    """
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"the answer cannot be read: {error!s:.200}") from error


def _start(child_read: int, child_write: int) -> subprocess.Popen[bytes]:
    """Start the process from a thread that lives as long as this process does: the kernel kills a worker
    when the thread that started it ends."""
    root = str(Path(strategy.__file__).parent.parent)
    paths = [root, *(str(Path(p).resolve()) for p in sys.path if p)]
    command = [
        *(sys.executable, "-s", "-P", "-S", "-B", "-c", _BOOT.format(paths=paths)),
        *(str(child_read), str(child_write), str(os.getpid())),
    ]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603  our own interpreter and code
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(child_read, child_write),
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )

    if threading.current_thread() is threading.main_thread():
        process = start()
    else:
        process = _starter(os.getpid()).submit(start).result()
    release(process.pid)  # a worker does not inherit the CPU that its parent shares with another one
    return process


@cache
def _starter(_pid: int) -> ThreadPoolExecutor:
    """The one thread of this process that starts workers on behalf of threads that may end before them."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-starter")


_ALIVE: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


@atexit.register
def _kill_all() -> None:
    """No worker outlives a normal end; PR_SET_PDEATHSIG sees to the others."""
    for worker in list(_ALIVE):
        worker.kill()


def _wait(poller: select.poll, deadline: float, what: str) -> None:
    left_s = deadline - time.monotonic()
    if left_s <= 0 or not poller.poll(left_s * 1000):
        raise PolicyTimeout(f"{what} within the deadline")


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
