"""What a locked worker does: answer the questions of a policy until its parent goes, or serve one job."""

from __future__ import annotations

import json
import os
import random
import select
import time
from collections.abc import Callable
from typing import NoReturn

from strategy.evolve.worker import wire
from strategy.evolve.worker.decisions import Decisions
from strategy.evolve.worker.lockdown import Locked
from strategy.evolve.worker.untrusted import describe

Serve = Callable[[bytes], bytes]
"""An entry point's answer to a job."""


def serve_decisions(read_fd: int, write_fd: int, locked: Locked) -> NoReturn:
    """Report the lockdown, then answer one question at a time; the end of the pipe is the end."""
    random.seed(0)  # every fork reseeds it from the system's entropy
    report = {"pid": os.getpid(), "layers": locked.layers, "missing": locked.missing}
    _send(write_fd, frame(json.dumps(report).encode()))
    handle = Decisions().handle
    read, write, header, clock = os.read, os.write, wire.REQUEST_HEAD, time.perf_counter
    poller = select.poll()
    poller.register(read_fd, select.POLLIN)
    come = poller.poll
    while True:
        data = read(read_fd, wire.QUESTION_BYTES)
        if len(data) < header.size:
            data = _rest(read_fd, data, header.size)
        length, kind = header.unpack_from(data)
        if len(data) != length + wire.HEADER.size:
            data = _rest(read_fd, data, length + wire.HEADER.size)
        try:
            reply = handle(kind & ~wire.LINGER, data)
        except BaseException as error:  # noqa: BLE001 - whatever comes out of foreign code becomes a reply
            reply = failed(error)
        sent = write(write_fd, reply)
        if sent < len(reply):
            _send(write_fd, reply[sent:])
        if kind & wire.LINGER:
            until = clock() + wire.LINGER_S
            while not come(0) and clock() < until:
                pass


def serve_job(read_fd: int, write_fd: int, serve: Serve) -> NoReturn:
    """Read the job, answer it, end."""
    random.seed(0)
    parts = []
    while part := os.read(read_fd, 1 << 20):
        parts.append(part)
    try:
        reply = frame(serve(b"".join(parts)))
    except BaseException as error:  # noqa: BLE001
        reply = failed(error)
    _send(write_fd, reply)
    os._exit(0)


def frame(payload: bytes) -> bytes:
    """A reply that went well."""
    return wire.REQUEST_HEAD.pack(len(payload) + 1, wire.OK) + payload


def failed(error: BaseException) -> bytes:
    """A reply that tells of an exception."""
    kind, message, line = describe(error)
    payload = json.dumps({"type": kind, "message": message, "line": line}).encode()
    return wire.REQUEST_HEAD.pack(len(payload) + 1, wire.FAILED) + payload


def _rest(descriptor: int, data: bytes, size: int) -> bytes:
    """The data with what is missing of it; the end of the stream is the end of the process."""
    parts, missing = [data], size - len(data)
    while missing > 0:
        part = os.read(descriptor, min(missing, 1 << 20))
        if not part:
            os._exit(0)
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _send(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
