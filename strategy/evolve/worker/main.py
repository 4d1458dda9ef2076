"""A worker process: set up, lock down, then answer until the parent closes its end.

Run as `python -m`-like code by `strategy.evolve.sandbox.process`; the two pipe descriptors and the parent's
process id are its arguments.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pickle
import sys
from collections.abc import Callable
from typing import NoReturn

from strategy.evolve.worker import wire
from strategy.evolve.worker.decisions import Decisions
from strategy.evolve.worker.lockdown import die_with_parent, lock
from strategy.evolve.worker.untrusted import describe

Handler = Callable[[int, bytes], bytes]
"""(what is asked, body) -> a whole reply frame."""


def main(arguments: list[str]) -> NoReturn:
    """Serve requests; never returns."""
    read_fd, write_fd, parent_pid = (int(a) for a in arguments)
    die_with_parent(parent_pid)
    kind, body = _receive(read_fd)
    if kind != wire.SETUP:
        os._exit(2)
    try:
        handler = _set_up(pickle.loads(body), read_fd, write_fd)  # noqa: S301  from the parent, who is trusted
    except Exception as error:  # noqa: BLE001 - an entry point that cannot start is reported, not swallowed
        _send(write_fd, _failed(error))
        os._exit(3)
    while True:
        kind, body = _receive(read_fd)
        try:
            reply = handler(kind, body)
        except BaseException as error:  # noqa: BLE001 - whatever comes out of foreign code becomes a reply
            reply = _failed(error)
        _send(write_fd, reply)


def _set_up(setup: wire.Setup, read_fd: int, write_fd: int) -> Handler:
    """Import and load everything, then give all rights away; the parent hears which layers hold."""
    handler: Handler
    if setup.entry:
        module, _, function = setup.entry.partition(":")
        serve: Callable[[bytes], bytes] = getattr(importlib.import_module(module), function)(
            setup.init_payload
        )

        def handler(_kind: int, body: bytes) -> bytes:
            return frame(serve(body))
    else:
        handler = Decisions().handle
    sys.setrecursionlimit(2000)
    gc.collect()
    gc.freeze()
    done = lock(read_fd, write_fd, setup.memory_bytes, setup.cpu_s)
    report = {"pid": os.getpid(), "layers": done.layers, "missing": done.missing}
    _send(write_fd, frame(json.dumps(report).encode()))
    return handler


def frame(payload: bytes) -> bytes:
    """A reply that went well."""
    return wire.REQUEST_HEAD.pack(len(payload) + 1, wire.OK) + payload


def _failed(error: BaseException) -> bytes:
    kind, message, line = describe(error)
    payload = json.dumps({"type": kind, "message": message, "line": line}).encode()
    return wire.REQUEST_HEAD.pack(len(payload) + 1, wire.FAILED) + payload


def _receive(descriptor: int) -> tuple[int, bytes]:
    """The next request; the end of the stream is the end of the process."""
    data = _more(descriptor)
    while len(data) < wire.REQUEST_HEAD.size:
        data += _more(descriptor)
    length, kind = wire.REQUEST_HEAD.unpack_from(data)
    missing = length + wire.HEADER.size - len(data)
    if missing > 0:
        parts = [data]
        while missing > 0:
            part = _more(descriptor)
            parts.append(part)
            missing -= len(part)
        data = b"".join(parts)
    return kind, data[wire.REQUEST_HEAD.size :]


def _more(descriptor: int) -> bytes:
    data = os.read(descriptor, wire.READ_BYTES)
    if not data:
        os._exit(0)
    return data


def _send(descriptor: int, data: bytes) -> None:
    sent = os.write(descriptor, data)
    while sent < len(data):
        sent += os.write(descriptor, data[sent:])
