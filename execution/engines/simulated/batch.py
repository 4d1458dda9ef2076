"""The twin's batch, made to serve: what each step yields is told stream by stream, and any sequence may leave.

Batching, KV memory, preemption and prefix cache are those of execution.twin.engine, step by step (no leaps).
"""

from __future__ import annotations

from heapq import heapify
from random import Random
from typing import TYPE_CHECKING

from execution.engines.simulated.hardware import Hardware
from execution.engines.simulated.options import SimulatedOptions
from execution.twin.engine import IDLE, Agenda, Engine
from execution.twin.leap import BLOCK_TOKENS
from execution.twin.prefix_cache import PrefixCache, PrefixIndex
from execution.twin.sequence import Sequence
from loop.contracts import Request
from loop.contracts.engine import EngineLimits

if TYPE_CHECKING:
    from collections.abc import Callable

    from execution.engines.simulated.stream import Stream


class LiveSequence(Sequence):
    """A sequence of the twin, with the stream that it feeds."""

    __slots__ = ("stream",)

    def __init__(self, request: Request, number: int, stream: Stream, priority: float) -> None:
        super().__init__(request, number)
        self.stream = stream
        self.priority = priority


class LiveBatch(Engine):
    """One replica's batch. Times are seconds of the performance model; the owner keeps the agenda."""

    __slots__ = ("_decoders", "_joined", "_leavers", "_real_time", "preemptions", "step_s", "steps")

    def __init__(
        self,
        hardware: Hardware,
        agenda: Agenda,
        *,
        limits: EngineLimits,
        options: SimulatedOptions,
        seed: int,
        real_time: Callable[[], float],
    ) -> None:
        cache = PrefixCache(PrefixIndex(), 1, 1) if options.prefix_cache else None
        super().__init__(
            hardware.costs,
            self,
            agenda,
            0,
            max_seqs=limits.max_num_seqs,
            max_batched=limits.max_num_batched_tokens,
            cache=cache,
            jitter=options.jitter,
            random=Random(seed),
            leap=False,
        )
        self.capacity_blocks = hardware.kv_capacity_tokens // BLOCK_TOKENS
        self._real_time = real_time
        self._decoders: dict[Sequence, Stream] = {}
        """Those that each step gives one token."""
        self._joined: list[LiveSequence] = []
        """Those that decode from the next step on."""
        self._leavers: set[Sequence] = set()
        self.steps = 0
        self.step_s = 0.0
        self.preemptions = 0

    # -- from outside ------------------------------------------------------------------------------------

    def withdraw(self, seq: LiveSequence) -> None:
        """Take a sequence off board before the next step begins; at once when nothing runs."""
        self._leavers.add(seq)
        if self.mode == IDLE:
            self._let_go()

    def use(self, limits: EngineLimits) -> None:
        """From the next step on."""
        self.max_seqs = limits.max_num_seqs
        self.max_batched = limits.max_num_batched_tokens

    @property
    def used_tokens(self) -> int:
        """Tokens of KV cache in use."""
        return self.kv_tokens + self.extra_blocks * BLOCK_TOKENS

    # -- Host of the twin's engine -----------------------------------------------------------------------

    def changed(self) -> None:
        """Nobody keeps a view of it."""

    def rest(self, now_s: float) -> None:
        """Nothing to do."""

    def finished(self, seq: Sequence, now_s: float) -> None:  # noqa: ARG002 - the port's
        """The last token of a sequence."""
        self._decoders.pop(seq, None)
        self._leavers.discard(seq)
        _stream(seq).advance(seq.cached)

    def prefilled(self, seq: Sequence, now_s: float) -> bool:  # noqa: ARG002 - the port's
        """The first token of a sequence, or the next one after a preemption."""
        assert isinstance(seq, LiveSequence)  # noqa: S101 - nothing else was ever enqueued
        seq.stream.advance(seq.cached)
        self._joined.append(seq)
        return False

    # -- steps -------------------------------------------------------------------------------------------

    def begin(self, now_s: float) -> None:
        """Hand out what the step that ended has made; begin the next one."""
        for stream in self._decoders.values():
            stream.advance()
        for seq in self._joined:
            self._decoders[seq] = seq.stream
        self._joined.clear()
        self._let_go()
        super().begin(now_s)
        if self.mode == IDLE:
            return
        self.steps += 1
        if self._batch:
            began_s = self._real_time()
            for chunked, _ in self._batch:
                stream = _stream(chunked)
                if stream.scheduled_s == 0.0:
                    stream.scheduled_s = began_s

    def _drop(self, seq: Sequence) -> None:
        self.preemptions += 1
        self._decoders.pop(seq, None)
        super()._drop(seq)

    def _let_go(self) -> None:
        """Free what the leavers hold."""
        leavers = self._leavers
        if not leavers:
            return
        self.reconcile()
        queued = [entry for entry in self.waiting if entry[3] in leavers]
        if queued:
            for entry in queued:
                self._queued_todo -= entry[3].todo
                self.prompt_tokens -= entry[3].target
            self.waiting = [entry for entry in self.waiting if entry[3] not in leavers]
            heapify(self.waiting)
        decoding = [seq for seq in leavers if seq in self._decoders]
        for seq in decoding:
            del self._decoders[seq]
            self._leave_decode(seq)
            self._unpin(seq)
        if decoding:
            self.finishing = [entry for entry in self.finishing if entry[2] not in leavers]
            heapify(self.finishing)
        partial = self.partial
        if partial is not None and partial in leavers:
            self.partial = None
            self.extra_blocks -= partial.blocks
            self.prompt_tokens -= partial.target - partial.computed
            self._queued_todo -= partial.todo
            self._unpin(partial)
        leavers.clear()
        self._fresh = True


def _stream(seq: Sequence) -> Stream:
    assert isinstance(seq, LiveSequence)  # noqa: S101 - nothing else was ever enqueued
    return seq.stream
