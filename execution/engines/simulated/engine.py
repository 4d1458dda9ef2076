"""SimulatedEngine: the Engine port over the twin's batch on real time.

One callback of the event loop drives everything: it ends a step when its time has come and begins the next one.
There is no task and no timer for a stream, so thousands of them are cheap.

    EngineSpec("simulated", "llama-3.1-70b", options={"device": "h100-sxm", "tp": 4})

What a front end takes before and after the batch (ReplicaPerformance.first_token_s) is not added: the gateway
before this engine takes its own time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from hashlib import blake2b
from heapq import heappop
from random import Random

import structlog

from execution.engines.simulated.answer import Answer
from execution.engines.simulated.batch import LiveBatch, LiveSequence
from execution.engines.simulated.checks import block_hashes, checked_limits, room_for
from execution.engines.simulated.clock import ScaledClock
from execution.engines.simulated.hardware import Hardware, hardware_of
from execution.engines.simulated.options import SimulatedOptions
from execution.engines.simulated.stream import Stream
from execution.engines.tokenizer import ByteTokenizer
from execution.twin.engine import Agenda
from execution.twin.leap import BLOCK_TOKENS
from loop.contracts import Request
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
    EngineSpec,
    EngineStats,
    Tokenizer,
)

_log = structlog.get_logger(__name__)

FEATURES = frozenset(
    (EngineFeature.LOGPROBS, EngineFeature.SEED, EngineFeature.PRIORITY, EngineFeature.PREFIX_CACHE)
)


class SimulatedEngine:
    """Serves made-up answers as fast as the pretended hardware would. Implements loop.contracts.engine.Engine."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._options = SimulatedOptions.of(spec)
        self._tokenizer = ByteTokenizer()
        self._limits = checked_limits(spec.limits)
        self._weights = blake2b(f"{spec.model}\0{spec.seed}".encode(), digest_size=32).digest()
        self._random = Random(f"{spec.model}/{spec.seed}")
        self._streams: dict[str, Stream] = {}
        self._number = 0
        self._agenda: Agenda = []
        self._info: EngineInfo | None = None
        self._batch: LiveBatch | None = None
        self._clock: ScaledClock | None = None
        self._timer: asyncio.Handle | None = None
        self._began_s = 0.0
        """Model time at which the last step began."""
        self._gone = self._draining = False
        self._why_gone = ""
        self._empty: asyncio.Future[None] | None = None
        self._prompt_tokens = self._generated_tokens = self._cached_tokens = self._finished = 0

    # -- life ----------------------------------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo:
        """Known after `start`."""
        if self._info is None:
            raise EngineError("the simulated engine has not started yet")
        return self._info

    @property
    def tokenizer(self) -> Tokenizer:
        """One token a byte."""
        return self._tokenizer

    async def start(self) -> None:
        """Look the hardware up, and take the time that loading takes. Raises EngineError."""
        if self._gone:
            raise EngineError("the simulated engine was stopped: build another one")
        if self._info is not None:
            raise EngineError("the simulated engine has started already")
        hardware = await asyncio.to_thread(hardware_of, self._spec.model, self._options)
        wait_s = self._options.start_s
        if wait_s < 0.0:
            wait_s = hardware.costs.start_s * self._options.time_scale
        await asyncio.sleep(wait_s)
        if self._gone:
            raise EngineError("the simulated engine was stopped while it started")
        self._clock = ScaledClock(self._options.time_scale)
        self._batch = LiveBatch(
            hardware,
            self._agenda,
            limits=self._limits,
            options=self._options,
            seed=self._spec.seed,
            real_time=time.monotonic,
        )
        self._info = _info(self._spec, hardware, self._tokenizer.vocab_size)

    async def drain(self) -> None:
        """Accept nothing more; return when nothing is in flight."""
        self._draining = True
        while self._streams and not self._gone:
            if self._empty is None:
                self._empty = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._empty)

    async def stop(self) -> None:
        """End everything in flight. Idempotent; also before `start`."""
        self._end_all("the simulated engine was stopped")

    def _end_all(self, why: str) -> None:
        if not self._gone:
            self._gone = True
            self._why_gone = why
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            stream.fail(EngineCrashedError(f"{why} before request {stream.request.id} was done"))
        self._batch = None
        self._agenda.clear()
        self._note_empty()

    # -- requests ------------------------------------------------------------------------------------------

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Outputs of one request, as loop.contracts.engine says."""
        stream = self._submit(request)
        try:
            while True:
                output = await stream.next()
                yield output
                if output.finish is not None:
                    return
        finally:
            self._abandon(stream)

    async def cancel(self, request_id: str) -> None:
        """End a request. Unknown ids are ignored."""
        stream = self._streams.get(request_id)
        if stream is not None:
            self._abandon(stream)
            stream.end(EngineFinish.CANCELLED)

    async def set_limits(self, limits: EngineLimits) -> None:
        """From the next step on. Raises ValueError."""
        self._limits = checked_limits(limits)
        if self._batch is not None:
            self._batch.use(limits)

    async def stats(self) -> EngineStats:
        """The state now. Raises EngineCrashedError after `stop`."""
        if self._gone:
            raise EngineCrashedError(self._why_gone)
        batch = self._batch
        if batch is None:
            return EngineStats(limits=self._limits)
        begun = [stream for stream in self._streams.values() if stream.made]
        return EngineStats(
            running=batch.running,
            waiting=len(batch.waiting),
            waiting_tokens=batch.prompt_tokens,
            kv_tokens=batch.used_tokens,
            limits=self._limits,
            steps=batch.steps,
            step_s=batch.step_s,
            preemptions=batch.preemptions,
            prompt_tokens=self._prompt_tokens + sum(len(s.request.prompt_token_ids) for s in begun),
            generated_tokens=self._generated_tokens + sum(s.made for s in begun),
            cached_tokens=self._cached_tokens + sum(s.cached for s in begun),
            finished=self._finished,
        )

    def _submit(self, request: EngineRequest) -> Stream:
        """Check and queue a request."""
        batch = self._batch
        if self._gone:
            raise EngineCrashedError(self._why_gone)
        if batch is None:
            raise EngineError("the simulated engine has not started yet")
        if self._draining:
            raise EngineDrainingError("the engine is draining: it accepts nothing more")
        if request.id in self._streams:
            raise ValueError(f"request id {request.id!r} is in use")
        room = room_for(request, self.info)
        if len(batch.waiting) >= self._limits.max_waiting:
            raise EngineBusyError(f"the queue is full: {len(batch.waiting)} requests wait")
        seed = request.sampling.seed
        answer = Answer(
            request,
            self._random.getrandbits(63) if seed is None else seed,
            self._weights,
            self._tokenizer,
            room,
            self._options.answer_tokens,
            self._options.answer_sigma,
        )
        stream = Stream(request, answer, self._ended)
        if answer.end <= answer.first:  # the tokens that were made before have ended it
            stream.end(answer.finish)
            return stream
        self._queue(batch, stream)
        return stream

    def _queue(self, batch: LiveBatch, stream: Stream) -> None:
        request, answer = stream.request, stream.answer
        self._number += 1
        hashes = block_hashes(request.prompt_token_ids) if self._options.prefix_cache else ()
        seq = LiveSequence(
            Request(
                self._number,
                request.arrival_s,
                self._spec.model,
                len(request.prompt_token_ids),
                answer.end - answer.first,
                hashes,
            ),
            self._number,
            stream,
            request.priority,
        )
        stream.seq = seq
        self._streams[request.id] = stream
        if batch.enqueue(seq, self._began_s) and self._timer is None:
            # Not at once: what else this turn of the loop brings belongs into the same step.
            self._timer = asyncio.get_running_loop().call_soon(self._tick)

    def _ended(self, stream: Stream) -> None:
        """The last token is made."""
        self._count(stream)
        self._finished += 1
        if self._streams.get(stream.request.id) is stream:
            del self._streams[stream.request.id]
        self._note_empty()

    def _abandon(self, stream: Stream) -> None:
        """Nobody wants the rest."""
        if self._streams.get(stream.request.id) is not stream:
            return
        del self._streams[stream.request.id]
        self._count(stream)
        if self._batch is not None and stream.seq is not None:
            self._batch.withdraw(stream.seq)
        if stream.finish is None:
            stream.finish = EngineFinish.CANCELLED
        self._note_empty()

    def _count(self, stream: Stream) -> None:
        """Add to the counters; those of open streams are added by `stats`."""
        self._generated_tokens += stream.made
        if stream.made:
            self._prompt_tokens += len(stream.request.prompt_token_ids)
            self._cached_tokens += stream.cached

    def _note_empty(self) -> None:
        if self._empty is not None and (self._gone or not self._streams):
            self._empty.set_result(None)
            self._empty = None

    # -- time ----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """End the step whose time has come, or begin the first one; come back when the next one ends."""
        self._timer = None
        batch, clock = self._batch, self._clock
        if batch is None or clock is None:
            return
        try:
            self._step(batch, clock)
        except Exception as error:  # noqa: BLE001 - a defect must end the streams, not leave them waiting
            self._crash(error)
            return
        if not self._agenda:
            return
        loop = asyncio.get_running_loop()
        wait_s = clock.monotonic_s(self._agenda[0][0]) - time.monotonic() if clock.scale else 0.0
        self._timer = loop.call_later(wait_s, self._tick) if wait_s > 0.0 else loop.call_soon(self._tick)

    def _step(self, batch: LiveBatch, clock: ScaledClock) -> None:
        agenda = self._agenda  # holds the end of the step in progress, or nothing
        if not agenda:
            if clock.scale:
                self._began_s = clock.now_s()
            batch.begin(self._began_s)
        elif agenda[0][0] <= clock.now_s():
            due_s = heappop(agenda)[0]
            clock.forgive(due_s)
            self._began_s = due_s
            batch.fire(due_s)
        else:
            return
        if agenda:
            batch.step_s += (agenda[0][0] - self._began_s) * clock.scale

    def _crash(self, error: Exception) -> None:
        _log.error("simulated engine failed", model=self._spec.model, exc_info=error)
        self._end_all(f"the simulated engine failed: {type(error).__name__}: {error}")


def _info(spec: EngineSpec, hardware: Hardware, vocab_size: int) -> EngineInfo:
    return EngineInfo(
        engine="simulated",
        model=spec.model,
        vocab_size=vocab_size,
        max_model_len=hardware.max_model_len,
        kv_capacity_tokens=hardware.kv_capacity_tokens,
        block_tokens=BLOCK_TOKENS,
        features=FEATURES,
    )
