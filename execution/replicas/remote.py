"""RemoteEngine: the Engine port over an engine in a process of its own (worker.py).

    engine = RemoteEngine(EngineSpec("torch", "tiny-llama"))
    await engine.start()

All streams share one socket. When the process dies every open stream raises EngineCrashedError at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
import structlog

from execution.engines.registry import tokenizer_of
from execution.replicas.child import DEFAULT_PYTHON, Child
from execution.replicas.inbox import RemoteStream
from execution.replicas.process import ProcessWatch
from execution.replicas.protocol import (
    Answered,
    Ask,
    Broken,
    Cancel,
    Connection,
    Drop,
    FromWorker,
    Outputs,
    Quit,
    Refused,
    Start,
    Started,
    Submit,
    error_of,
)
from loop.contracts.engine import (
    EngineCrashedError,
    EngineError,
    EngineInfo,
    EngineLimits,
    EngineOutput,
    EngineRequest,
    EngineRequestError,
    EngineSpec,
    EngineStats,
    Tokenizer,
)

_TERMINATE_S = 1.0
"""Between SIGTERM and SIGKILL."""
_REAP_S = 5.0
"""Between SIGKILL and the end."""
_LAST_DATA_S = 0.25
"""After the end of the process, for what it has sent to be read."""
_log = structlog.get_logger(__name__)


class RemoteEngine:
    """An engine in another process. Implements loop.contracts.engine.Engine.

    `python`: interpreter that has what the engine needs (or a command in front of it, as a list). `env`: added to
    the environment, e.g. OMP_NUM_THREADS.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        python: str | Sequence[str] = DEFAULT_PYTHON,
        env: Mapping[str, str] | None = None,
        start_timeout_s: float = 600.0,
        stop_timeout_s: float = 10.0,
    ) -> None:
        self._spec = spec
        self._python = python
        self._env = dict(env or {})
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._child: Child | None = None
        self._watch: ProcessWatch | None = None
        self._connection: Connection[FromWorker] | None = None
        self._ready: asyncio.Future[EngineInfo] | None = None
        self._info: EngineInfo | None = None
        self._tokenizer: Tokenizer | None = None
        self._streams: dict[int, RemoteStream] = {}
        self._ids: dict[str, RemoteStream] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._begun = False
        self._gone = ""
        """Why it does not serve any more."""

    # -- life ----------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """Of the worker; None before `start`, and once it is over."""
        return self._child.pid if self._child is not None and self._child.running else None

    @property
    def info(self) -> EngineInfo:
        """Known after `start`."""
        if self._info is None:
            raise EngineError(f"the {self._spec.engine} engine has not started yet")
        return self._info

    @property
    def tokenizer(self) -> Tokenizer:
        """The same as the engine's, in this process."""
        if self._tokenizer is None:
            raise EngineError(f"the {self._spec.engine} engine has not started yet")
        return self._tokenizer

    async def start(self) -> None:
        """Start the process and the engine in it. Raises EngineError with the end of what the process has said."""
        if self._begun or self._gone:
            raise EngineError(
                f"the {self._spec.engine} engine was started or stopped before: build another one"
            )
        self._begun = True
        try:
            self._tokenizer = await asyncio.to_thread(tokenizer_of, self._spec)
            self._info = await asyncio.wait_for(self._launch(), self._start_timeout_s)
        except BaseException as error:
            self._fail(f"the {self._spec.engine} engine did not start")
            said = await self._bury()
            if isinstance(error, TimeoutError):
                raise EngineError(
                    f"the {self._spec.engine} engine did not start within {self._start_timeout_s:g} s{said}"
                ) from error
            if isinstance(error, EngineCrashedError):
                raise EngineError(f"{error}{said}") from error
            raise

    async def _launch(self) -> EngineInfo:
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        try:
            self._child = await Child.start(self._python, self._env)
        except OSError as error:
            raise EngineError(f"the interpreter {self._python} cannot be run: {error}") from error
        self._watch = ProcessWatch(self._child.pid, self._ended)
        connection: Connection[FromWorker] = Connection(FromWorker, self._received, self._lost)
        self._connection = connection
        await loop.create_connection(lambda: connection, sock=self._child.socket)
        connection.send(Start(self._spec))
        return await self._ready

    async def drain(self) -> None:
        """Accept nothing more; return when nothing is in flight."""
        await self.call("drain")

    async def stop(self) -> None:
        """End everything in flight, and the process: told first, then terminated, then killed. Idempotent."""
        self._fail("the engine was stopped")
        child, connection = self._child, self._connection
        if child is None:
            return
        try:
            if connection is not None:
                connection.send(Quit())
                connection.flush()
            if not await child.wait(self._stop_timeout_s):
                child.terminate()
                await child.wait(_TERMINATE_S)
        finally:
            await self._bury()

    async def _bury(self) -> str:
        """End what is left of the process; returns the end of what it has said."""
        child = self._child
        if child is None:
            return ""
        child.kill()
        if self._watch is not None:
            self._watch.close()
        if self._connection is not None:
            self._connection.close()
        await child.wait(_REAP_S)
        child.close()
        said = child.said()
        return f"; it said:\n{said}" if said else ""

    # -- requests ------------------------------------------------------------------------------------------

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Outputs of one request, as loop.contracts.engine says."""
        stream = self._open(request)
        try:
            while True:
                output = await stream.next()
                yield output
                if output.finish is not None:
                    return
        finally:
            self._leave(stream)

    async def cancel(self, request_id: str) -> None:
        """End a request. Unknown ids are ignored."""
        stream = self._ids.get(request_id)
        if stream is not None and self._connection is not None and not self._gone:
            self._connection.send(Cancel(stream.number))

    async def set_limits(self, limits: EngineLimits) -> None:
        """From the next step on. Raises ValueError."""
        await self.call("set_limits", limits)

    async def stats(self) -> EngineStats:
        """The state now. Raises EngineCrashedError."""
        return msgspec.convert(await self.call("stats"), EngineStats)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call another public method of the engine, e.g. one to load an adapter. Arguments and result are what
        msgpack can hold; dataclasses arrive as mappings. Raises what the method raises."""
        connection = self._alive()
        self._number += 1
        number = self._number
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            connection.send(Ask(number, method, arguments))
            return await future
        finally:
            self._calls.pop(number, None)

    def _alive(self) -> Connection[FromWorker]:
        if self._gone:
            raise EngineCrashedError(self._gone)
        if self._connection is None or self._info is None:
            raise EngineError(f"the {self._spec.engine} engine has not started yet")
        return self._connection

    def _open(self, request: EngineRequest) -> RemoteStream:
        connection = self._alive()
        if request.id in self._ids:
            raise ValueError(f"request id {request.id!r} is in use")
        self._number += 1
        stream = RemoteStream(self._number, request.id)
        try:
            connection.send(Submit.of(stream.number, request))
        except (OverflowError, TypeError) as error:
            raise EngineRequestError(f"the request cannot be sent: {error}") from error
        self._streams[stream.number] = stream
        self._ids[request.id] = stream
        return stream

    def _leave(self, stream: RemoteStream) -> None:
        """Its reader has gone, with or without the end of the answer."""
        if self._forget(stream) and self._connection is not None and not self._gone:
            self._connection.send(Drop(stream.number))

    def _forget(self, stream: RemoteStream) -> bool:
        """The stream is over; False: it was so before."""
        if self._streams.pop(stream.number, None) is None:
            return False
        del self._ids[stream.request_id]
        return True

    # -- what the worker says ------------------------------------------------------------------------------

    def _received(self, message: FromWorker) -> None:
        if isinstance(message, Outputs):
            for chunk in message.chunks:
                stream = self._streams.get(chunk.stream)
                if stream is not None:
                    if chunk.finish is not None:
                        self._forget(stream)
                    stream.push(chunk)
        elif isinstance(message, Broken):
            stream = self._streams.get(message.stream)
            if stream is not None:
                self._forget(stream)
                stream.fail(error_of(message.kind, message.message))
        elif isinstance(message, Answered):
            _resolve(self._calls.get(message.call), message.value)
        elif isinstance(message, Refused):
            _reject(self._calls.get(message.call), error_of(message.kind, message.message))
        elif isinstance(message, Started):
            _resolve(self._ready, message.info)
        else:
            error = error_of(message.kind, message.message)
            _reject(self._ready, error if isinstance(error, EngineError) else EngineError(str(error)))

    def _ended(self) -> None:
        """The process is dead. Its socket closes by itself, unless a process that it has started holds it."""
        asyncio.get_running_loop().call_later(_LAST_DATA_S, self._lost, "")

    def _lost(self, why: str) -> None:
        """The socket has closed: the process is dead, or as good as that."""
        child = self._child
        if self._gone or child is None:
            return
        if why:
            _log.warning("worker connection broke", pid=child.pid, why=why)
        self._fail(f"the {self._spec.engine} engine's process {child.pid} {child.fate()}")
        child.kill()

    def _fail(self, why: str) -> None:
        """Nothing more is served."""
        if self._gone:
            return
        self._gone = why
        streams = list(self._streams.values())
        self._streams.clear()
        self._ids.clear()
        for stream in streams:
            stream.fail(EngineCrashedError(f"{why} before request {stream.request_id} was done"))
        for future in (*self._calls.values(), self._ready):
            _reject(future, EngineCrashedError(why))


def _resolve(future: asyncio.Future[Any] | None, value: Any) -> None:
    if future is not None and not future.done():
        future.set_result(value)


def _reject(future: asyncio.Future[Any] | None, error: Exception) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
        with contextlib.suppress(asyncio.CancelledError):
            future.exception()  # nobody may be waiting for it
