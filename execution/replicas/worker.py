"""`python -m execution.replicas.worker FD PARENT`: one engine in a process of its own, behind a socket.

Started by RemoteEngine (remote.py), which says what over protocol.py. It ends when told to, when its parent dies,
or when the socket closes; SIGTERM makes it finish what it has begun first.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from dataclasses import replace
from typing import Any

import msgspec

from execution.engines.registry import build_engine
from execution.replicas.outbox import Outbox
from execution.replicas.protocol import (
    Answered,
    Ask,
    Broken,
    Cancel,
    Connection,
    Drop,
    Refused,
    Start,
    Started,
    StartFailed,
    Submit,
    ToWorker,
    kind_of,
)
from loop.contracts.engine import Engine, EngineError, EngineLimits

_PR_SET_PDEATHSIG = 1
_LAST_WORDS_S = 5.0
"""For the engine to stop once nobody listens."""


class Worker:
    """Serves one engine until it is told to end."""

    def __init__(self) -> None:
        self._connection: Connection[ToWorker] | None = None
        self._outbox: Outbox | None = None
        self._engine: Engine | None = None
        self._streams: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._over: asyncio.Future[int] | None = None
        self._closed: asyncio.Future[None] | None = None

    async def run(self, sock: socket.socket) -> int:
        """Until the end; returns the exit code."""
        loop = asyncio.get_running_loop()
        self._over, self._closed = loop.create_future(), loop.create_future()
        connection: Connection[ToWorker] = Connection(ToWorker, self._received, self._hung_up, self._flush)
        self._connection = connection
        self._outbox = Outbox(connection)
        await loop.create_connection(lambda: connection, sock=sock)
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # the terminal's, meant for the parent
        code = await self._over
        if self._engine is not None:
            with contextlib.suppress(TimeoutError, EngineError):
                await asyncio.wait_for(self._engine.stop(), _LAST_WORDS_S)
        self._flush()
        connection.close()
        with contextlib.suppress(TimeoutError):  # what was said last is on its way
            await asyncio.wait_for(self._closed, _LAST_WORDS_S)
        return code

    # -- what the parent says ----------------------------------------------------------------------------

    def _received(self, message: ToWorker) -> None:
        if isinstance(message, Submit):
            task = asyncio.ensure_future(self._serve(message))
            self._streams[message.stream] = task
            task.add_done_callback(lambda _: self._streams.pop(message.stream, None))
        elif isinstance(message, Drop):
            stream = self._streams.get(message.stream)
            if stream is not None:
                stream.cancel()
        elif isinstance(message, Cancel):
            self._spawn(self._cancel(message.stream))
        elif isinstance(message, Ask):
            self._spawn(self._answer(message))
        elif isinstance(message, Start):
            self._spawn(self._start(message))
        else:
            self._end(0)

    async def _start(self, message: Start) -> None:
        try:
            self._engine = engine = build_engine(message.spec)
            await engine.start()
            answer: Started | StartFailed = Started(engine.info)
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent must be told
            answer = StartFailed(kind_of(error), str(error))
        self._send(answer)

    async def _serve(self, message: Submit) -> None:
        """One stream, to its end."""
        number = message.stream
        outbox, engine = self._outbox, self._engine
        assert outbox is not None  # noqa: S101 - made before the first message
        try:
            if engine is None:
                raise EngineError("the engine has not started yet")
            request = replace(message.read(), id=_engine_id(number))
            async for output in engine.generate(request):
                outbox.put(number, output)
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader must be told
            outbox.settle()  # what came before the error goes before it
            self._send(Broken(number, kind_of(error), str(error)))

    async def _cancel(self, number: int) -> None:
        if self._engine is not None:
            await self._engine.cancel(_engine_id(number))

    async def _answer(self, ask: Ask) -> None:
        """Call a public method and say what came of it."""
        try:
            value = await self._call(ask.method, ask.arguments)
            self._send(Answered(ask.call, value))
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller must be told
            self._send(Refused(ask.call, kind_of(error), str(error)))

    async def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if self._engine is None:
            raise EngineError("the engine has not started yet")
        if method == "set_limits":
            arguments = (msgspec.convert(arguments[0], EngineLimits),)
        if method == "drain":
            await self._finish_streams()
            return None
        found = None if method.startswith("_") else getattr(self._engine, method, None)
        if not callable(found):
            raise EngineError(f"this engine has no method {method!r}")
        value = found(*arguments)
        return await value if hasattr(value, "__await__") else value

    # -- the end -----------------------------------------------------------------------------------------

    def _terminate(self) -> None:
        """SIGTERM: finish what has begun, then end. A second one ends at once."""
        if self._engine is None or any(task.get_name() == "drain" for task in self._tasks):
            self._end(0)
        else:
            self._spawn(self._drain(), name="drain")

    async def _drain(self) -> None:
        await self._finish_streams()
        self._end(0)

    async def _finish_streams(self) -> None:
        """Accept nothing more; return when all that was begun is on its way to its readers."""
        assert self._engine is not None  # noqa: S101 - checked by the callers
        await self._engine.drain()
        while self._streams:
            await asyncio.wait(list(self._streams.values()))
        self._flush()

    def _hung_up(self, why: str) -> None:  # noqa: ARG002 - it is the parent's affair
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)
        self._end(1)

    def _end(self, code: int) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(code)

    # -- details -----------------------------------------------------------------------------------------

    def _spawn(self, work: Any, name: str | None = None) -> None:
        task = asyncio.ensure_future(work)
        if name:
            task.set_name(name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self, message: Any) -> None:
        if self._connection is not None:
            self._connection.send(message)

    def _flush(self) -> None:
        if self._outbox is not None:
            self._outbox.settle()


def _engine_id(number: int) -> str:
    """Ids inside this process: of streams, since a request may come again while its first attempt still ends."""
    return f"stream-{number}"


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone (Linux; elsewhere the socket's end does it)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def main(arguments: list[str]) -> int:
    """Serve on an inherited socket."""
    descriptor, parent = (int(argument) for argument in arguments)
    die_with_parent(parent)
    with socket.socket(fileno=descriptor) as sock:
        return asyncio.run(Worker().run(sock))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of an engine that will not end hold up nobody
