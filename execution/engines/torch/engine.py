"""TorchEngine: the Engine port around a step thread.

The event loop hands commands over and is handed tokens; it never waits for arithmetic. Tokens that their reader has
not fetched yet gather in its stream, so that a slow reader holds up nobody.

    engine = TorchEngine(EngineSpec(engine="torch", model="tiny-llama"))
    await engine.start()
    async for output in engine.generate(EngineRequest("a", tuple(engine.tokenizer.encode("Hello")))): ...
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from torch import nn

from execution.engines.torch.core import EngineCore
from execution.engines.torch.options import TorchOptions, check_limits, parse_options
from execution.engines.torch.requests import check_request
from execution.engines.torch.sequence import Sequence
from execution.engines.torch.stream import Stream
from loop.contracts.engine import (
    EngineBusyError,
    EngineCrashedError,
    EngineDrainingError,
    EngineError,
    EngineFeature,
    EngineFinish,
    EngineInfo,
    EngineLimits,
    EngineOutput,
    EngineRequest,
    EngineRequestError,
    EngineSpec,
    EngineStats,
    Tokenizer,
    TokenLogprob,
)

if TYPE_CHECKING:
    from execution.live.service import ExecutionEvolution

log = structlog.get_logger()
T = TypeVar("T")
Command = Callable[[EngineCore], None]
Event = tuple[Sequence, int | None, str, TokenLogprob | None, EngineFinish | None, str | None]

FEATURES = frozenset(
    {EngineFeature.LOGPROBS, EngineFeature.SEED, EngineFeature.PRIORITY, EngineFeature.PREFIX_CACHE}
)


class TorchEngine:
    """Serves one model in a thread of this process; all methods belong to the event loop that started it."""

    def __init__(self, spec: EngineSpec) -> None:
        """Raises EngineError for bad options, ValueError for bad limits."""
        self._spec = spec
        self._options: TorchOptions = parse_options(spec.options)
        check_limits(spec.limits)
        self._limits = spec.limits
        self._condition = threading.Condition()
        self._commands: deque[Command] = deque()
        self._adding = 0  # requests among the commands
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._core: EngineCore | None = None
        self._info: EngineInfo | None = None
        self._gone: str | None = None  # why it serves no more
        self._stopping = False
        self._draining = False
        self._order = itertools.count()
        self._streams: dict[str, Stream] = {}
        self._by_sequence: dict[Sequence, Stream] = {}
        self._idle: list[asyncio.Future[None]] = []  # who waits for nothing to be in flight
        self._events: list[Event] = []  # of the step under way; the step thread's
        self._evolution: ExecutionEvolution | None = None

    # ---- Engine ----

    @property
    def info(self) -> EngineInfo:
        """Known after `start`."""
        if self._info is None:
            raise EngineError("the engine is not started")
        return self._info

    @property
    def tokenizer(self) -> Tokenizer:
        """Known after `start`."""
        return self._alive().tokenizer

    async def start(self) -> None:
        """Load, warm up. Raises EngineError."""
        if self._thread is not None or self._stopping:
            raise EngineError("an engine is started once")
        self._loop = asyncio.get_running_loop()
        loaded: asyncio.Future[EngineCore] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(loaded,), name="torch-engine", daemon=True)
        self._thread.start()
        try:
            core = await asyncio.shield(loaded)
        except EngineError as error:
            self._gone = self._gone or f"the engine did not start: {error}"
            raise
        self._core = core
        self._info = EngineInfo(
            engine="torch",
            model=self._spec.served_name or self._spec.model,
            vocab_size=core.config.vocab_size,
            max_model_len=core.room.max_model_len,
            kv_capacity_tokens=core.room.kv_tokens,
            block_tokens=core.block_tokens,
            features=FEATURES if core.room.prefix_tokens else FEATURES - {EngineFeature.PREFIX_CACHE},
        )
        if self._options.evolve_execution:
            from execution.live.service import evolve_engine  # noqa: PLC0415 it knows this module

            self._evolution = evolve_engine(self, core, self._spec, self._options)

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Outputs of one request; see Engine."""
        stream = self._open(request)
        finished = False
        try:
            while not finished:
                output = await stream.next()
                finished = output.finish is not None
                yield output
        finally:
            self._close(stream)

    async def cancel(self, request_id: str) -> None:
        """End a request: its iterator yields a last output, CANCELLED."""
        stream = self._streams.get(request_id)
        if stream is not None and self._gone is None:
            self._send(lambda core: core.cancel(stream.sequence, self))

    async def set_limits(self, limits: EngineLimits) -> None:
        """From the next step on. Raises ValueError."""
        check_limits(limits, self._alive().room.lanes)
        self._limits = limits
        self._send(lambda core: core.set_limits(limits))

    async def stats(self) -> EngineStats:
        """The state now. Raises EngineCrashedError."""
        core = self._alive()
        with self._condition:
            running = list(core.scheduler.running)
            counters, adding = core.counters, self._adding
            return EngineStats(
                running=len(running),
                waiting=core.scheduler.waiting + adding,
                waiting_tokens=core.scheduler.waiting_tokens
                + sum(s.to_compute for s in running if s.to_compute > 1),
                kv_tokens=sum(s.computed for s in running),
                limits=self._limits,
                steps=counters.steps,
                step_s=counters.step_s,
                preemptions=core.scheduler.preemptions,
                prompt_tokens=counters.prompt_tokens,
                generated_tokens=counters.generated_tokens,
                cached_tokens=counters.cached_tokens,
                finished=counters.finished,
            )

    async def drain(self) -> None:
        """Accept nothing more; return when nothing is in flight."""
        self._draining = True
        while self._by_sequence:
            idle = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            await idle

    async def stop(self) -> None:
        """End everything in flight (EngineCrashedError) and free all."""
        self._stopping = True
        evolution, self._evolution = self._evolution, None
        if evolution is not None:
            await asyncio.get_running_loop().run_in_executor(None, evolution.close)
        self._gone = self._gone or "the engine was stopped"
        with self._condition:
            self._condition.notify()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(None, thread.join)
        self._fail_all()
        self._core = None

    # ---- Replacing parts of the model ----

    @property
    def core(self) -> EngineCore:
        """What the step thread runs; to be touched by `between_steps` alone. Known after `start`."""
        return self._alive()

    async def execution(self) -> dict[str, Any]:
        """What execution has evolved: hot paths, what is in force, what was refused (with `evolve_execution`)."""
        return {} if self._evolution is None else self._evolution.report()

    async def modules(self) -> dict[str, nn.Module]:
        """All parts of the model by name (model.py says what each takes and gives)."""
        return await self._ask(lambda core: core.modules())

    async def replace_module(self, name: str, module: nn.Module, *, same_function: bool = True) -> nn.Module:
        """Put another module in the place of a named one, between two steps; returns the old one.

        `same_function`: it computes the same, so KV of earlier prompts stays valid. Raises KeyError.
        """
        return await self._ask(lambda core: core.replace_module(name, module, same_function=same_function))

    def between_steps(self, question: Callable[[EngineCore], T]) -> Future[T]:
        """Have the step thread call this before its next step; may be called from any thread."""
        self._alive()
        answer: Future[T] = Future()

        def run(core: EngineCore) -> None:
            try:
                answer.set_result(question(core))
            except Exception as error:  # noqa: BLE001 handed to who asked
                answer.set_exception(error)

        self._send(run)
        return answer

    async def _ask(self, question: Callable[[EngineCore], T]) -> T:
        return await asyncio.wrap_future(self.between_steps(question))

    # ---- Event loop's side ----

    def _alive(self) -> EngineCore:
        if self._gone is not None:
            raise EngineCrashedError(self._gone)
        if self._core is None:
            raise EngineError("the engine is not started")
        return self._core

    def _open(self, request: EngineRequest) -> Stream:
        core = self._alive()
        if self._draining:
            raise EngineDrainingError("the engine is draining: it accepts nothing more")
        if request.id in self._streams:
            raise ValueError(f"request id {request.id!r} is in use")
        check_request(request, self.info)
        seats = max(min(self._limits.max_num_seqs, core.room.lanes), len(core.scheduler.running))
        if len(self._by_sequence) >= self._limits.max_waiting + seats:
            raise EngineBusyError(
                f"{len(self._by_sequence)} requests are in flight: {seats} run, {self._limits.max_waiting} may wait"
            )
        sequence = Sequence(
            request, next(self._order), core.tokenizer, self.info.max_model_len, self._spec.seed
        )
        stream = self._streams[request.id] = self._by_sequence[sequence] = Stream(sequence)

        def add(core: EngineCore) -> None:
            self._adding -= 1
            core.add(sequence, self)

        self._send(add, adding=1)
        return stream

    def _close(self, stream: Stream) -> None:
        """The reader is gone: so is its request, if it is not over."""
        if self._streams.get(stream.sequence.request.id) is stream:
            del self._streams[stream.sequence.request.id]
        if stream.sequence in self._by_sequence and self._gone is None:
            self._send(lambda core: core.cancel(stream.sequence, self))

    def _send(self, command: Command, adding: int = 0) -> None:
        with self._condition:
            self._adding += adding
            self._commands.append(command)
            self._condition.notify()

    def _deliver(self, events: list[Event]) -> None:
        """Tokens of one step, to their streams."""
        for sequence, token, text, logprob, finish, reason in events:
            stream = self._by_sequence.get(sequence)
            if stream is None:
                continue
            if finish is not None or reason is not None:
                del self._by_sequence[sequence]
            if reason is not None and finish is None:
                stream.fail(EngineRequestError(f"request {sequence.request.id}: {reason}"))
            else:
                stream.put(token, text, logprob, finish, reason)
        self._tell_idle()

    def _fail_all(self) -> None:
        """Everything in flight ends with the reason why the engine is gone."""
        streams = list(self._by_sequence.values())
        self._by_sequence.clear()
        for stream in streams:
            stream.fail(EngineCrashedError(self._gone or "the engine is gone"))
        self._tell_idle()

    def _tell_idle(self) -> None:
        if not self._by_sequence and self._idle:
            idle, self._idle = self._idle, []
            for waiter in idle:
                if not waiter.done():
                    waiter.set_result(None)

    # ---- Step thread's side ----

    def put(
        self,
        sequence: Sequence,
        token: int | None,
        text: str,
        logprob: TokenLogprob | None,
        finish: EngineFinish | None,
    ) -> None:
        """One more token of a sequence, or its end."""
        reason = sequence.text.stop_reason if finish is EngineFinish.STOP else None
        self._events.append((sequence, token, text, logprob, finish, reason))

    def fail(self, sequence: Sequence, message: str) -> None:
        """An answer that cannot be made."""
        self._events.append((sequence, None, "", None, None, message))

    def _run(self, loaded: asyncio.Future[EngineCore]) -> None:
        """The step thread."""
        try:
            core = EngineCore(self._spec, self._options)
            core.warm_up()
        except EngineError as error:
            self._post(_resolve, loaded, None, error)
            return
        except Exception as error:  # noqa: BLE001 whatever it is, `start` must tell
            self._post(_resolve, loaded, None, EngineError(f"the engine did not start: {error!r}"))
            return
        self._post(_resolve, loaded, core, None)
        try:
            while self._next_commands(core):
                core.step(self)
                if self._events:
                    events, self._events = self._events, []
                    self._post(self._deliver, events)
        except Exception as error:  # noqa: BLE001 whatever it is, those who wait must be told
            log.error(  # noqa: TRY400 exception() would print whole tensors, and prompts
                "engine crashed", model=self._spec.model, error=repr(error), trace=traceback.format_exc()
            )
            self._post(self._crashed, f"the engine crashed in a step: {error!r}")

    def _next_commands(self, core: EngineCore) -> bool:
        """Carry out what was asked for; wait while there is nothing to do. False: stop."""
        with self._condition:
            while not (self._commands or self._stopping or core.scheduler.running or core.scheduler.waiting):
                self._condition.wait()
            while self._commands:
                self._commands.popleft()(core)
            return not self._stopping

    def _crashed(self, message: str) -> None:
        self._gone = self._gone or message
        self._fail_all()

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        """Have the event loop call this; nobody is there to be told when the loop is closed."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function, *arguments)


def _resolve(future: asyncio.Future[EngineCore], core: EngineCore | None, error: EngineError | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    elif core is not None:
        future.set_result(core)
