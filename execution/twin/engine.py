"""The batch of one replica on virtual time: vLLM V1's scheduler, one iteration after the other.

An iteration schedules the running sequences first (one token each for those that decode, the next chunk of
a prompt that is under way), then waiting ones by (priority, arrival) while the token budget, the seats and the
KV blocks allow. A prompt emits its first token at the end of the iteration that finishes it. When blocks run
out the running sequence with the highest (priority, arrival) is preempted: its KV is dropped and recomputed.

Iterations that hold prompt chunks are simulated one by one. Runs of pure decode iterations are leapt over
(leap.py): to the next finish, to the end of a linear piece of the cost model, to a shortage of blocks, or to
the end of the iteration in progress when something joins the queue. With `leap=False` each is an event.
"""

from __future__ import annotations

from heapq import heappop, heappush
from random import Random
from typing import Protocol

from execution.twin.batch import Batch
from execution.twin.leap import steps_by, steps_within
from execution.twin.ports import Costs
from execution.twin.preempt import make_room
from execution.twin.prefix_cache import PrefixCache
from execution.twin.sequence import Sequence

Agenda = list[tuple[float, int, int, "Event"]]
"""Heap of (time, order of the object, its version, object). An entry of an older version is stale."""

IDLE, MIXED, DECODE = 0, 1, 2


class Event(Protocol):
    """Something that can stand in the agenda."""

    version: int

    def fire(self, now_s: float) -> None:
        """Its time has come."""


class Host(Protocol):
    """What an engine tells its replica."""

    def changed(self) -> None:
        """What a router sees of the engine is no longer what it was."""

    def finished(self, seq: Sequence, now_s: float) -> None:
        """All output tokens are out, and the memory is free."""

    def prefilled(self, seq: Sequence, now_s: float) -> bool:
        """The first token is out. True: the host takes the sequence, and its KV blocks, from here."""

    def rest(self, now_s: float) -> None:
        """Nothing left to do: the engine is idle from now on."""


class Engine(Batch):
    """One replica's batch, with time. Seconds are of virtual time."""

    __slots__ = (
        "_a",
        "_admissions",
        "_agenda",
        "_b",
        "_began_s",
        "_costs",
        "_host",
        "_leap",
        "_padded",
        "_steps",
        "busy_s",
        "busy_since_s",
        "factor",
        "jitter",
        "mode",
        "order",
        "random",
        "speed",
        "version",
    )

    def __init__(
        self,
        costs: Costs,
        host: Host,
        agenda: Agenda,
        order: int,
        *,
        max_seqs: int,
        max_batched: int,
        cache: PrefixCache | None,
        jitter: float,
        random: Random,
        leap: bool,
    ) -> None:
        super().__init__(costs.kv_capacity_tokens, max_seqs=max_seqs, max_batched=max_batched, cache=cache)
        self._costs = costs
        self._host = host
        self._agenda = agenda
        self._leap = leap
        self._padded = costs.padded
        self.order = order
        """Among simultaneous events, and for all time."""
        self.jitter = jitter
        self.random = random
        self.version = 0
        self.mode = IDLE
        self.speed = 1.0
        self.factor = 1.0
        """Jitter of the batch as it is."""
        self.busy_s = 0.0
        self.busy_since_s = 0.0
        self._admissions = 0
        # The iteration or leap in progress: k steps of it take a * k**2 + b * k.
        self._began_s = 0.0
        self._steps = 0
        self._a = 0.0
        self._b = 0.0

    # -- from outside ----------------------------------------------------------------------------------

    def enqueue(self, seq: Sequence, now_s: float) -> bool:
        """Add to the queue. True: the engine was idle, and the caller must `begin` it."""
        if not seq.resident:
            seq.queued_s = now_s
        entry = (seq.priority, seq.request.arrival_s, seq.number, seq)
        self._push_waiting(entry)
        self._host.changed()
        if self.mode == DECODE:
            if self.waiting[0] is entry and self.decoding < self.max_seqs:
                self.interrupt(now_s)
            return False
        return self.mode == IDLE

    def evacuate(self, now_s: float) -> list[Sequence]:
        """Give up everything on board, queued or running, and return it. The engine is as new after: empty,
        idle, without cached prefixes."""
        on_board = [entry[3] for entry in self.waiting]
        on_board += [seq for seq, _ in self._batch]
        on_board += [entry[2] for entry in self.finishing]
        if self.partial is not None and all(seq is not self.partial for seq, _ in self._batch):
            on_board.append(self.partial)
        if self.mode != IDLE:
            self.busy_s += now_s - self.busy_since_s
        self.mode = IDLE
        self.version += 1
        self.decoding = self.kv_tokens = self.extra_blocks = 0
        self.phases = [0] * 16
        self.finishing, self._batch, self.waiting, self.partial = [], [], [], None
        self.prompt_tokens = self._queued_todo = self._over_sum = self._over_count = 0
        self._over = []
        if self._cache is not None:
            self._cache.clear()
        self._anchor()
        return on_board

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return self.decoding + (len(self._batch) if self.mode == MIXED else self.partial is not None)

    @property
    def empty(self) -> bool:
        """Nothing queued, nothing running, no KV held for others."""
        return self.mode == IDLE and not self.waiting and self.partial is None and self.extra_blocks == 0

    # -- time ------------------------------------------------------------------------------------------

    def interrupt(self, now_s: float) -> None:
        """Let a leap end with the iteration in progress, so that the next one can differ."""
        if self.mode != DECODE or self._steps == 1:
            return
        a, b, began_s = self._a, self._b, self._began_s
        k = int(steps_by(now_s - began_s, a, b)) + 1
        while k > 1 and began_s + (a * (k - 1) + b) * (k - 1) > now_s:
            k -= 1
        while began_s + (a * k + b) * k <= now_s:
            k += 1
        if k < self._steps:
            self._steps = k
            self.version += 1
            heappush(self._agenda, (began_s + (a * k + b) * k, self.order, self.version, self))

    def fire(self, now_s: float) -> None:
        """The iteration or leap in progress ends now; the next begins."""
        if self.mode == MIXED:
            self._end_mixed(now_s)
        else:
            steps = self._steps
            step = self.step = self.step + steps
            self.kv_tokens += self.decoding * steps
            finishing = self.finishing
            if finishing and finishing[0][0] == step:
                self._finish_due(now_s)
        self.begin(now_s)

    def begin(self, now_s: float) -> None:
        """Form the next batch and start it; be idle when there is nothing to do."""
        chunks: list[tuple[int, int]] = []
        batch: list[tuple[Sequence, int]] = []
        n = self.decoding
        room = True
        if self.partial is not None or (
            (self.kv_tokens >> 4) + n + self.extra_blocks > self.capacity_blocks and n
        ):
            room = self._schedule_running(chunks, batch)
            n = self.decoding
        if room and self.waiting:
            self._admit(now_s, chunks, batch)
            n = self.decoding
        if not chunks and not n:
            if not room and self.waiting:
                # All that ran was preempted in favour of nothing: the next schedule follows at once.
                self._admit(now_s, chunks, batch)
                n = self.decoding
            if not chunks and not n:
                self._stop(now_s)
                return
        if self._fresh:
            self._anchor()
        if self.mode == IDLE:
            self.busy_since_s = now_s
        self._began_s = now_s
        self._batch = batch
        if chunks:
            self.mode = MIXED
            context = self.padded_tokens() if self._padded else self.kv_tokens
            cost_s = self._costs.iteration_s(n, context, chunks) * (self.factor / self.speed)
        else:
            self.mode = DECODE
            # After a preemption nobody was admitted: that is for the very next iteration.
            cost_s = self._decode_run(n, one_step=not room)
        self.version += 1
        heappush(self._agenda, (now_s + cost_s, self.order, self.version, self))

    def _stop(self, now_s: float) -> None:
        if self.mode != IDLE:
            self.busy_s += now_s - self.busy_since_s
            self.mode = IDLE
        self._batch = []
        if self._fresh:
            self._anchor()
        self._host.rest(now_s)

    def _anchor(self) -> None:
        """The batch has changed: what a router sees is of now."""
        self._fresh = False
        self._host.changed()
        self.anchor_kv = self.kv_tokens
        self.anchor_step = self.step
        if self.jitter:
            sigma = self.jitter
            self.factor = self.random.lognormvariate(-0.5 * sigma * sigma, sigma)

    def _decode_run(self, n: int, *, one_step: bool) -> float:
        """Choose how many decode steps to take in one go, and return their time."""
        kv = self.kv_tokens
        # What attention costs grows by n with each step either way, so that a leap is a leap.
        context = self.padded_tokens() if self._padded else kv
        scale = self.factor / self.speed
        if not self._leap:
            self._steps = 1
            self._a, self._b = 0.0, self._costs.iteration_s(n, context, ()) * scale
            return self._b
        base, slope, end = self._costs.decode_segment(n, context)
        steps = self.finishing[0][0] - self.step
        if one_step:
            steps = 1
        if context + n * (steps - 1) >= end:
            steps = max(1, -int((context - end) // n))
        if ((kv + n * (steps - 1)) >> 4) + n + self.extra_blocks > self.capacity_blocks:
            steps = min(steps, steps_within(self.free_blocks(), n, self.phases, self.step))
        self._steps = steps
        a = self._a = 0.5 * scale * slope * n
        b = self._b = scale * (base + slope * context) - a
        return (a * steps + b) * steps

    # -- forming a batch -------------------------------------------------------------------------------

    def _schedule_running(self, chunks: list[tuple[int, int]], batch: list[tuple[Sequence, int]]) -> bool:
        """Blocks for one more token of each decoding sequence and a chunk of the prompt under way. False:
        somebody was preempted."""
        n = self.decoding
        partial = self.partial
        chunk = grown = 0
        if partial is not None:
            chunk = min(partial.target - partial.computed, self.max_batched - n)
            grown = max(0, ((partial.computed + chunk + 15) >> 4) - partial.blocks)
        room = True
        if (self.kv_tokens >> 4) + n + self.extra_blocks + grown > self.capacity_blocks:
            room = make_room(self)
            n = self.decoding
            partial = self.partial
            if partial is not None:
                chunk = min(partial.target - partial.computed, self.max_batched - n)
                grown = max(0, ((partial.computed + chunk + 15) >> 4) - partial.blocks)
        if partial is not None and chunk > 0:
            partial.blocks += grown
            self.extra_blocks += grown
            chunks.append((chunk, partial.computed))
            batch.append((partial, chunk))
        return room

    def _admit(self, now_s: float, chunks: list[tuple[int, int]], batch: list[tuple[Sequence, int]]) -> None:
        """Waiting sequences join while budget, seats and blocks allow."""
        waiting = self.waiting
        budget = self.max_batched - self.decoding
        for chunk, _ in chunks:
            budget -= chunk
        seats = self.max_seqs - self.decoding - len(batch)
        if self.partial is not None and not batch:
            seats -= 1
        while waiting and budget > 0 and seats > 0:
            seq = waiting[0][3]
            if seq.resident:
                if not self._fits((seq.computed >> 4) + 1):
                    return
                heappop(waiting)
                self._queued_todo -= seq.todo
                self._join_decode(seq)
                budget -= 1
            else:
                taken = self._admit_prompt(seq, budget, chunks)
                if not taken:
                    return
                batch.append((seq, taken))
                budget -= taken
                if seq.scheduled_s < 0.0:
                    seq.scheduled_s = now_s
            self._admissions += 1
            seq.admitted = self._admissions
            self._fresh = True
            seats -= 1

    def _admit_prompt(self, seq: Sequence, budget: int, chunks: list[tuple[int, int]]) -> int:
        """Take the head of the queue in, if its whole prompt fits; returns the tokens of its first chunk, 0
        when it must wait (vLLM's `scheduler_reserve_full_isl`)."""
        target = seq.target
        cached = pinned = revived = 0
        hashes: tuple[int, ...] = ()
        cache = self._cache
        if cache is not None and seq.request.block_hashes:
            self.reconcile()
            hashes = seq.request.block_hashes[: target // (cache.blocks_each << 4)]
            hashes = hashes[: cache.match(hashes)]
            pinned = len(hashes) * cache.blocks_each
            # At least the last block is computed, to have something to sample from.
            cached = min(pinned << 4, (target - 1) & ~15) if target > 0 else 0
            revived = cache.idle_among(hashes)
        if not self._fits(((target + 15) >> 4) - pinned + revived):
            return 0
        heappop(self.waiting)
        chunk = min(target - cached, budget)
        if hashes and cache is not None:
            cache.pin(hashes)
            seq.refs = list(hashes)
        if seq.scheduled_s < 0.0:
            seq.cached = cached
        seq.computed = cached
        seq.shared = pinned
        seq.hashed = len(hashes)
        seq.blocks = max(pinned, (cached + chunk + 15) >> 4)
        self.extra_blocks += seq.blocks - pinned + revived
        self.prompt_tokens -= cached
        chunks.append((chunk, cached))
        return chunk

    # -- the end of an iteration -----------------------------------------------------------------------

    def _end_mixed(self, now_s: float) -> None:
        self.step += 1
        self.kv_tokens += self.decoding
        self._fresh = True
        finishing = self.finishing
        if finishing and finishing[0][0] == self.step:
            self._finish_due(now_s)
        self.partial = None
        self.reconcile()
        for seq, chunk in self._batch:
            seq.computed += chunk
            self.prompt_tokens -= chunk
            if self._cache is not None and seq.request.block_hashes:
                self._publish(seq, self._cache)
            if seq.computed < seq.target:
                self.partial = seq
                continue
            seq.generated += 1
            if seq.first_token_s < 0.0:
                seq.first_token_s = now_s
            self._queued_todo -= seq.todo
            if seq.generated >= seq.request.output_tokens:
                self.extra_blocks -= seq.blocks
                self._unpin(seq)
                self._host.finished(seq, now_s)
            elif not self._host.prefilled(seq, now_s):
                self.extra_blocks -= seq.blocks
                self._join_decode(seq)
        self._batch = []

    def _finish_due(self, now_s: float) -> None:
        self._fresh = True
        self.reconcile()
        finishing = self.finishing
        step = self.step
        while finishing and finishing[0][0] == step:
            seq = heappop(finishing)[2]
            self._leave_decode(seq)
            self._unpin(seq)
            self._host.finished(seq, now_s)
