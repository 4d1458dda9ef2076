"""Workers that decide, from the outside: exchange frames within a deadline, kill, keep a spare."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import time

import structlog

from loop.contracts import PolicyCrashed, PolicyTimeout
from strategy.evolve.sandbox.frames import missing_of, payload_of
from strategy.evolve.sandbox.limits import SandboxLimits
from strategy.evolve.sandbox.template import template_of_policies
from strategy.evolve.worker import wire

_log = structlog.get_logger(__name__)
_PIPE_BYTES = 1 << 20
_DEATH_S = 2.0
"""For the kernel to tell how a process ended, or to end one that was killed."""
_read, _write, _clock = os.read, os.write, time.perf_counter  # looked up once: the hot path


class WorkerProcess:
    """One locked process that decides. Its methods raise PolicyTimeout, PolicyCrashed and PolicyError; after
    the first two it must be killed. It starts in the background: `wait_ready` collects what it reports."""

    def __init__(self, limits: SandboxLimits) -> None:
        self._limits = limits
        self.layers: tuple[str, ...] = ()
        """What holds it, known once it is ready."""
        self._pid = 0
        self._ready = self._dead = False
        self._template = template_of_policies(limits)
        (child_read, self.write_fd), (self.read_fd, child_write) = job_pipe(), job_pipe()
        for descriptor in (self.write_fd, self.read_fd):
            os.set_blocking(descriptor, False)
        self.readable = select.poll()
        self.readable.register(self.read_fd, select.POLLIN)
        self._poll = self.readable.poll
        self._writable = select.poll()
        self._writable.register(self.write_fd, select.POLLOUT)
        try:
            self._number = self._template.fork(child_read, child_write, limits)
        except BaseException:
            os.close(self.write_fd)
            os.close(self.read_fd)
            raise
        finally:
            os.close(child_read)
            os.close(child_write)

    @property
    def pid(self) -> int:
        """Of the process, which leads a process group of its own."""
        if self._pid == 0:
            self._pid = self._template.pid_of(self._number)
        return self._pid

    @property
    def ready(self) -> bool:
        """Whether it is known to be locked."""
        return self._ready

    @property
    def orphaned(self) -> bool:
        """Whether the template is gone; the kernel ends the worker then."""
        return not self._template.alive

    def wait_ready(self) -> None:
        """Wait until the worker is locked; log each layer that the kernel did not grant."""
        if self._ready:
            return
        report = json.loads(self.receive(time.monotonic() + self._limits.start_s))
        self.layers = tuple(str(layer) for layer in report["layers"])
        if "bubblewrap" in self._template.layers:
            self.layers = ("bubblewrap", *self.layers)
        for layer, reason in report["missing"]:
            _log.warning("sandbox layer missing", layer=layer, reason=reason)
        self._ready = True

    def send(self, kind: int, body: bytes, deadline: float) -> None:
        """Hand over one request; `deadline` on `time.monotonic`."""
        if self.readable.poll(0):  # it has spoken, or its end of the pipe is closed
            if not os.read(self.read_fd, wire.ANSWER_BYTES):
                raise self._crashed()
            raise PolicyCrashed("the worker broke the protocol: it spoke without being asked")
        self.write(wire.REQUEST_HEAD.pack(len(body) + 1, kind) + body, deadline)

    def write(self, frame: bytes, deadline: float) -> None:
        """Hand over a whole frame."""
        data = memoryview(frame)
        while data:
            try:
                data = data[os.write(self.write_fd, data) :]
            except BlockingIOError:
                _wait(self._writable, deadline, "the worker takes no input")
            except OSError as error:
                raise self._crashed() from error

    def receive(self, deadline: float, limit: int = wire.MAX_REPLY_BYTES, begun: bytes = b"") -> bytes:
        """The payload of the next reply; what was read of it already is `begun`."""
        data = bytearray(begun)
        missing = missing_of(data, limit)
        while missing > 0:
            _wait(self.readable, deadline, "no answer")
            try:
                part = os.read(self.read_fd, min(1 << 20, max(missing, wire.READ_BYTES)))
            except OSError as error:
                raise self._crashed() from error
            if not part:
                raise self._crashed()
            data += part
            missing = missing_of(data, limit)
        if missing < 0:
            raise PolicyCrashed("the worker broke the protocol: more than one answer to one question")
        return payload_of(bytes(data))

    def exchange(self, frame: bytes, timeout_ms: int, look_s: float = 0.0) -> bytes:
        """The hot path: a question of routing and its answer of fixed size, as a rule by one write, one poll
        and one read. For `look_s` the answer is looked for before this thread sleeps."""
        try:
            sent = _write(self.write_fd, frame)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self._crashed() from error
        if sent < len(frame):  # a question in full, of thousands of replicas
            self.write(frame[sent:], time.monotonic() + timeout_ms / 1000)
        poll = self._poll
        if look_s:
            until = _clock() + look_s
            while not poll(0) and _clock() < until:
                pass
        if not poll(timeout_ms):
            raise PolicyTimeout(f"no answer within the deadline of {timeout_ms} ms")
        try:
            reply = _read(self.read_fd, wire.ANSWER_BYTES)
        except OSError as error:
            raise self._crashed() from error
        if not reply:
            raise self._crashed()
        if len(reply) != wire.DISPATCHED.size or reply[wire.HEADER.size] != wire.OK:
            self.receive(time.monotonic() + timeout_ms / 1000, begun=reply)  # the report of an exception
            raise PolicyCrashed("the worker broke the protocol: an answer of the wrong size")
        return reply

    def ask(self, kind: int, body: bytes, timeout_s: float, limit: int = wire.MAX_REPLY_BYTES) -> bytes:
        """One question, one answer."""
        self.wait_ready()
        deadline = time.monotonic() + timeout_s
        self.send(kind, body, deadline)
        return self.receive(deadline, limit)

    def kill(self) -> None:
        """End the process and all that it may have started; idempotent."""
        if self._dead:
            return
        self._dead = True
        os.close(self.write_fd)
        os.close(self.read_fd)
        if not self._template.alive:
            return  # and it with it
        self._template.end(self._number)
        with contextlib.suppress(PolicyCrashed):
            if not self._template.wait_gone(self._number, _DEATH_S):
                _log.error("a sandbox worker does not end", number=self._number)
            self._template.forget(self._number)

    def _crashed(self) -> PolicyCrashed:
        how = "is gone, and its template with it"
        with contextlib.suppress(PolicyCrashed):
            known = self._template.wait_gone(self._number, _DEATH_S / 4)
            how = self._template.how_it_ended(self._number) if known else "closed its pipe"
        return PolicyCrashed(f"the worker process {how}")


class WorkerSupply:
    """Keeps locked workers ready that have no policy yet, so that replacing one costs no start-up."""

    def __init__(self, limits: SandboxLimits | None = None, spares: int = 1) -> None:
        self.limits = limits or SandboxLimits()
        self._target = spares
        self._spares: list[WorkerProcess] = []
        self._refill()

    def take(self) -> WorkerProcess:
        """A worker that is ready; the next spare starts in the background."""
        worker = self._ready_spare() or self._fresh()
        self._refill()
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

    def _ready_spare(self) -> WorkerProcess | None:
        while self._spares:
            spare = self._spares.pop(0)
            try:
                spare.wait_ready()
            except (PolicyTimeout, PolicyCrashed):  # it died while it waited
                spare.kill()
            else:
                if not spare.orphaned:
                    return spare
                spare.kill()
        return None

    def _fresh(self) -> WorkerProcess:
        try:
            return self._started()
        except PolicyCrashed:  # the template was gone before that was known; now there is another one
            return self._started()

    def _started(self) -> WorkerProcess:
        worker = WorkerProcess(self.limits)
        try:
            worker.wait_ready()
        except BaseException:
            worker.kill()
            raise
        return worker

    def _refill(self) -> None:
        with contextlib.suppress(PolicyTimeout, PolicyCrashed):  # a spare is a convenience
            while len(self._spares) < self._target:
                self._spares.append(WorkerProcess(self.limits))


def job_pipe() -> tuple[int, int]:
    """(read end, write end) of a pipe with much room."""
    read_fd, write_fd = os.pipe()
    with contextlib.suppress(OSError, AttributeError):  # a bigger pipe is a convenience
        fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return read_fd, write_fd


def _wait(poller: select.poll, deadline: float, what: str) -> None:
    left_s = deadline - time.monotonic()
    if left_s <= 0 or not poller.poll(left_s * 1000):
        raise PolicyTimeout(f"{what} within the deadline")
