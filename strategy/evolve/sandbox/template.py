"""A template process from the outside: started once, then told to fork locked workers and to end them."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import pickle  # towards the template only
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import structlog

import strategy
from loop.contracts import PolicyCrashed, PolicyTimeout
from strategy.evolve.sandbox import bubblewrap, frames
from strategy.evolve.sandbox.affinity import ALL_CPUS
from strategy.evolve.sandbox.limits import SandboxLimits
from strategy.evolve.worker import wire

_log = structlog.get_logger(__name__)
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
_ANSWER_S = 10.0
"""For a trusted process that has nothing else to do."""


class Template:
    """One template, shared by the threads of this process.

    It starts in the background; the methods that need it wait. PolicyCrashed and PolicyTimeout mean that it
    is gone, and with it every worker forked from it: the kernel sees to that.
    """

    def __init__(self, limits: SandboxLimits, entry: str = "", init_payload: bytes = b"") -> None:
        self.entry = entry
        self.layers: tuple[str, ...] = ()
        """What holds its workers, known once it is ready."""
        self.ready = False
        self._deadline = time.monotonic() + limits.start_s
        self._numbers = itertools.count(1)
        self._pids: dict[int, int] = {}
        self._gone: dict[int, int] = {}
        self._lock = threading.RLock()
        self._owner = os.getpid()
        self._begun = bytearray()
        self._closed = False
        self._wrapped = limits.bubblewrap and bubblewrap.works()
        setup = wire.Setup(entry, init_payload, limits.memory_bytes, limits.cpu_s, tuple(ALL_CPUS))
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_ANSWER_S)
        with theirs, tempfile.TemporaryFile(buffering=0) as file:
            file.write(pickle.dumps(setup))
            file.seek(0)
            try:
                self._process = _start(theirs.fileno(), file.fileno(), entry, wrapped=self._wrapped)
            except BaseException:
                self._socket.close()
                raise
        _ALIVE.add(self)

    @property
    def pid(self) -> int:
        """Of the process that was started (bubblewrap's, where that is used)."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can still be asked, and by this process."""
        return not self._closed and self._owner == os.getpid() and self._process.poll() is None

    def fileno(self) -> int:
        """Readable when there is a report."""
        return self._socket.fileno()

    def wait_ready(self) -> None:
        """Wait until it has built its entry point; log each layer that the kernel did not grant its workers.

        Raises:
            PolicyFault: it cannot start; PolicyRaisedError with the exception of the entry point.
        """
        with self._lock:
            while not self.ready:
                self._check_open()
                left_s = self._deadline - time.monotonic()
                if left_s <= 0 or not select.select([self._socket], [], [], left_s)[0]:
                    raise PolicyTimeout(f"the template process {self._named()} did not start in time")
                self.collect_start()

    def collect_start(self) -> None:
        """Take in what lies in the socket while it starts: its report of the layers, or why it cannot."""
        with self._lock:
            self._begun += self._received(wire.READ_BYTES)
            if self.ready or frames.missing_of(self._begun, wire.MAX_REPLY_BYTES) > 0:
                return
            report = frames.parse(frames.payload_of(bytes(self._begun)))
            self._begun.clear()
            self.layers = tuple(str(layer) for layer in report["layers"])
            if self._wrapped and report["pid"] == 1:  # the first process of a namespace of its own
                self.layers = ("bubblewrap", *self.layers)
            for layer, reason in report["missing"]:
                _log.warning("sandbox layer missing", layer=layer, reason=reason)
            self.ready = True

    def fork(self, read_fd: int, write_fd: int, limits: SandboxLimits) -> int:
        """Order a worker that reads and writes these two; the caller may close them then. Returns its number."""
        self.wait_ready()
        with self._lock:
            number = next(self._numbers)
            order = wire.ORDER.pack(wire.FORK, number, limits.memory_bytes, limits.cpu_s)
            try:
                socket.send_fds(self._socket, [order], [read_fd, write_fd])
            except OSError as error:
                self.kill()
                raise PolicyCrashed(f"the template process {self._named()} is gone: {error}") from error
            return number

    def end(self, number: int) -> None:
        """Order that a worker be killed; `collect` tells when it is gone."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(wire.ORDER.pack(wire.END, number, 0, 0))

    def collect(self) -> dict[int, str]:
        """Take in one report; which workers are gone and how they ended, as far as nobody asked yet."""
        with self._lock:
            what, number, value = wire.REPORT.unpack(self._exactly(wire.REPORT.size))
            if what == wire.STARTED:
                self._pids[number] = value
            else:
                self._pids.pop(number, None)
                self._gone[number] = value if what == wire.GONE else -value
            return {number: self.how_it_ended(number) for number in self._gone}

    def pid_of(self, number: int) -> int:
        """The worker's process id; waits until it is forked.

        Raises:
            PolicyCrashed: it could not be.
        """
        with self._lock:
            while number not in self._pids and number not in self._gone:
                self.collect()
            if number in self._gone:
                raise PolicyCrashed(f"the worker process {self.how_it_ended(number)}")
            pid = self._pids[number]
            return bubblewrap.outer_pid(pid, self.pid) if self._wrapped else pid

    def wait_gone(self, number: int, timeout_s: float) -> bool:
        """Whether a worker ended by then."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while number not in self._gone:
                self._check_open()
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not select.select([self._socket], [], [], left_s)[0]:
                    return False
                self.collect()
            return True

    def how_it_ended(self, number: int) -> str:
        """In words."""
        status = self._gone[number]
        if status < 0:
            return f"could not be forked: {os.strerror(-status)}"
        if os.WIFSIGNALED(status):
            return f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
        return f"ended with exit code {os.WEXITSTATUS(status)}"

    def forget(self, number: int) -> None:
        """A worker that is gone needs no record."""
        with self._lock:
            self._gone.pop(number, None)

    def kill(self) -> None:
        """End the process and every worker; idempotent."""
        if self._closed or self._owner != os.getpid():
            return
        self._closed = True
        _ALIVE.discard(self)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._socket.close()

    def _named(self) -> str:
        return f"of {self.entry}" if self.entry else "of policies"

    def _check_open(self) -> None:
        if self._closed:
            raise PolicyCrashed(f"the template process {self._named()} is gone")

    def _exactly(self, size: int) -> bytes:
        data = self._received(size)
        while len(data) < size:
            data += self._received(size - len(data))
        return data

    def _received(self, size: int) -> bytes:
        try:
            data = self._socket.recv(size)
        except OSError as error:
            self.kill()
            raise PolicyCrashed(f"the template process {self._named()} is gone: {error}") from error
        if not data:
            self.kill()
            raise PolicyCrashed(f"the template process {self._named()} is gone")
        return data


def template_of_policies(limits: SandboxLimits) -> Template:
    """The one template of this process that policies are forked from, started when there is none."""
    with _STARTING:
        wrapped = limits.bubblewrap and bubblewrap.works()
        template = _OF_POLICIES.get(wrapped)
        if template is None or not template.alive:
            if template is not None:
                template.kill()
            template = _OF_POLICIES[wrapped] = Template(limits)
        return template


_STARTING = threading.Lock()
_OF_POLICIES: dict[bool, Template] = {}
_ALIVE: weakref.WeakSet[Template] = weakref.WeakSet()


@atexit.register
def _kill_all() -> None:
    """No template outlives a normal end; PR_SET_PDEATHSIG sees to the others."""
    for template in list(_ALIVE):
        template.kill()


def _start(control_fd: int, setup_fd: int, entry: str, *, wrapped: bool) -> subprocess.Popen[bytes]:
    """Start the process from a thread that lives as long as this process does: the kernel kills a template
    when the thread that started it ends."""
    root = str(Path(strategy.__file__).parent.parent)
    paths = [root, *(str(Path(p).resolve()) for p in sys.path if p)]
    command = [sys.executable, "-s", "-P", "-S", "-B", "-c", _BOOT.format(paths=paths)]
    command += [str(control_fd), str(setup_fd), "0" if wrapped else str(os.getpid())]
    if wrapped:
        command = bubblewrap.wrap(command, None if entry else paths)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603  our own interpreter and code
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(control_fd, setup_fd),
            env=_ENVIRONMENT,
            cwd="/",
            process_group=0,  # the terminal's Ctrl-C is not for it
        )

    if threading.current_thread() is threading.main_thread():
        return start()
    return _starter(os.getpid()).submit(start).result()


@cache
def _starter(_pid: int) -> ThreadPoolExecutor:
    """The one thread of this process that starts templates on behalf of threads that may end before them."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-starter")
