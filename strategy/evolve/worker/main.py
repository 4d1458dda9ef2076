"""A template process: import and build everything once, then fork a worker for each order.

Run by `strategy.evolve.sandbox.template`; its arguments are the descriptors of the socket and of the setup, and
the parent's process id. It is trusted: it executes no foreign code, and reads nothing that a worker wrote. What
runs foreign code is forked from it, so that each worker starts in milliseconds, with the same memory, hash seed
and random state as every other one, and leaves nothing behind for the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import pickle
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from strategy.evolve.worker import wire
from strategy.evolve.worker.lockdown import Locked, die_with_parent, lock
from strategy.evolve.worker.serving import Serve, failed, serve_decisions, serve_job

_READ_FD, _WRITE_FD = 3, 4
"""What a worker has, and nothing else: every other descriptor is closed before the lockdown."""
_ASIDE_FD, _MAX_FD = 64, 4096
_UNUSABLE = 4
"""Exit code of a worker that could not lock itself."""


def main(arguments: list[str]) -> NoReturn:
    """Serve orders; never returns."""
    control_fd, setup_fd, parent_pid = (int(a) for a in arguments)
    die_with_parent(parent_pid)
    control = socket.socket(fileno=control_fd)
    try:
        with open(setup_fd, "rb") as file:  # noqa: PTH123  a descriptor, not a path
            setup: wire.Setup = pickle.load(file)  # noqa: S301  from the parent, who is trusted
        if setup.cpus:
            os.sched_setaffinity(0, setup.cpus)
        template = _Template(control, _build(setup))
        report = json.dumps({"pid": os.getpid(), **template.try_lock(setup)}).encode()
    except Exception as error:  # noqa: BLE001 - an entry point that cannot start is reported, not swallowed
        control.sendall(failed(error))
        os._exit(3)
    control.sendall(wire.REQUEST_HEAD.pack(len(report) + 1, wire.OK) + report)
    template.run()


def _build(setup: wire.Setup) -> Serve | None:
    """What serves a job; None: workers serve the decisions of a policy."""
    sys.setrecursionlimit(2000)
    if not setup.entry:
        return None
    module, _, function = setup.entry.partition(":")
    make: Callable[[bytes], Serve] = getattr(importlib.import_module(module), function)
    return make(setup.init_payload)


class _Template:
    """The loop of the template: orders come in over a socket, children end."""

    def __init__(self, control: socket.socket, serve: Serve | None) -> None:
        self._control = control
        self._serve = serve
        self._pid = os.getpid()
        self._children: dict[int, int] = {}
        """Number of the worker by pid."""
        self._woken, wake = os.pipe()
        for descriptor in (self._woken, wake):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()  # a collection in a child would write to every object, and copy every page

    def try_lock(self, setup: wire.Setup) -> dict[str, object]:
        """What the kernel grants a worker: found out by one that locks itself and ends."""
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                done = self._enter(told, tell, setup.memory_bytes, setup.cpu_s)
                os.write(_WRITE_FD, json.dumps({"layers": done.layers, "missing": done.missing}).encode())
            finally:
                os._exit(0)
        os.close(tell)
        with open(told, "rb") as file:  # noqa: PTH123
            answer = file.read()
        os.waitpid(pid, 0)
        if not answer:
            raise RuntimeError("a worker could not lock itself")
        report: dict[str, object] = json.loads(answer)
        return report

    def run(self) -> NoReturn:
        """Until the parent is gone."""
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._woken, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poller.poll()}
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            if self._control.fileno() in ready:
                self._obey()

    def _obey(self) -> None:
        order, descriptors, _, _ = socket.recv_fds(self._control, wire.ORDER.size, 2)
        while order and len(order) < wire.ORDER.size:
            order += self._control.recv(wire.ORDER.size - len(order))
        if not order:
            self._end_all()
        what, number, memory_bytes, cpu_s = wire.ORDER.unpack(order)
        if what == wire.FORK:
            self._fork(number, descriptors, memory_bytes, cpu_s)
        else:
            for pid in [pid for pid, child in self._children.items() if child == number]:
                _kill(pid)

    def _fork(self, number: int, descriptors: list[int], memory_bytes: int, cpu_s: int) -> None:
        read_fd, write_fd = descriptors
        try:
            pid = os.fork()
        except OSError as error:
            self._tell(wire.NOT_STARTED, number, error.errno or 0)
            pid = -1
        if pid == 0:
            self._be_a_worker(read_fd, write_fd, memory_bytes, cpu_s)
        os.close(read_fd)
        os.close(write_fd)
        if pid > 0:
            self._children[pid] = number
            self._tell(wire.STARTED, number, pid)

    def _be_a_worker(self, read_fd: int, write_fd: int, memory_bytes: int, cpu_s: int) -> NoReturn:
        try:
            done = self._enter(read_fd, write_fd, memory_bytes, cpu_s)
            if self._serve is None:
                serve_decisions(_READ_FD, _WRITE_FD, done)
            else:
                serve_job(_READ_FD, _WRITE_FD, self._serve)
        finally:
            os._exit(_UNUSABLE)  # a child must never return into the template's loop

    def _enter(self, read_fd: int, write_fd: int, memory_bytes: int, cpu_s: int) -> Locked:
        """Become a worker: of its own process group, without the template's descriptors, locked."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent(self._pid)
        os.setpgid(
            0, 0
        )  # not setsid: each session is a scheduling group, and to switch between two costs 3 us
        aside = [fcntl.fcntl(fd, fcntl.F_DUPFD, _ASIDE_FD) for fd in (read_fd, write_fd)]
        self._control.detach()
        for source, target in zip(aside, (_READ_FD, _WRITE_FD), strict=True):
            os.dup2(source, target)
        os.closerange(_WRITE_FD + 1, _MAX_FD)
        return lock(_READ_FD, _WRITE_FD, memory_bytes, cpu_s)

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            number = self._children.pop(pid, None)
            if number is not None:
                self._tell(wire.GONE, number, status)

    def _tell(self, what: int, number: int, value: int) -> None:
        try:
            self._control.sendall(wire.REPORT.pack(what, number, value))
        except OSError:
            self._end_all()

    def _end_all(self) -> NoReturn:
        for pid in self._children:
            _kill(pid)
        os._exit(0)


def _kill(pid: int) -> None:
    """Kill a child that was not reaped yet, and its group. (Before it leads a group it cannot have started
    anything.)"""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
