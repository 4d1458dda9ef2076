"""What is in a step: decodes first, then prompts under way, then new ones, as budgets of tokens, seats and KV allow.

A prompt is cut into chunks where `max_num_batched_tokens` is short. When KV is short, the running sequence that
would be last in the queue loses its lane and waits again; its blocks go to the prefix store, so that resuming it is
a copy if they are still there, else its prompt and answer so far are computed again.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from execution.engines.torch.kv import BlockBudget, LaneCache
from execution.engines.torch.prefix import PrefixStore, block_digests
from execution.engines.torch.sequence import Sequence
from loop.contracts.engine import EngineLimits


@dataclass(slots=True)
class Schedule:
    """The content of one step."""

    decodes: list[Sequence] = field(default_factory=list)
    """In the order of their lanes."""
    prompts: list[tuple[Sequence, int]] = field(default_factory=list)
    """(sequence, tokens of this chunk)."""

    def __bool__(self) -> bool:
        return bool(self.decodes or self.prompts)


class Scheduler:
    """Queue, lanes and KV budget. Belongs to the step thread."""

    def __init__(
        self, limits: EngineLimits, cache: LaneCache, budget: BlockBudget, store: PrefixStore | None
    ) -> None:
        self.limits = limits
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.waiting = 0
        """Sequences in the queue."""
        self.waiting_tokens = 0
        """Of sequences in the queue."""
        self._cache = cache
        self._budget = budget
        self._store = store
        self._queue: list[Sequence] = []  # a heap; ended ones are skipped when they come up
        self._lanes: list[Sequence | None] = [None] * cache.lanes
        self._steps = 0

    def add(self, sequence: Sequence) -> None:
        """Into the queue."""
        heapq.heappush(self._queue, sequence)
        sequence.waiting = True
        self.waiting += 1
        self.waiting_tokens += len(sequence.tokens)

    def end(self, sequence: Sequence) -> None:
        """It runs or waits no more; what it held is free."""
        if sequence.ended:
            return
        sequence.ended = True
        if sequence.waiting:
            self._dequeued(sequence)
        else:
            self._release(sequence)

    def schedule(self) -> Schedule:
        """The next step: moves sequences between queue and lanes."""
        self._steps += 1
        preempted = self._grow()
        schedule = Schedule()
        budget = self.limits.max_num_batched_tokens
        decodes = [s for s in self.running if s.to_compute == 1]
        if len(decodes) > budget:  # those that waited longest
            decodes = sorted(decodes, key=lambda s: s.touched)[:budget]
        budget -= len(decodes)
        for sequence in sorted(s for s in self.running if s.to_compute > 1):
            budget -= self._chunk(schedule, sequence, budget)
        while budget > 0 and not preempted:
            admitted = self._admit()
            if admitted is None:
                break
            if admitted.to_compute == 1:
                decodes.append(admitted)
                budget -= 1
            else:
                budget -= self._chunk(schedule, admitted, budget)
        self._compact()
        schedule.decodes = sorted(decodes, key=lambda s: s.lane)
        for sequence in decodes:
            sequence.touched = self._steps
        return schedule

    def remember(self, sequence: Sequence) -> None:
        """Keep the KV of a sequence's full blocks for those that begin alike."""
        if self._store is None or sequence.computed < self._budget.block_tokens:
            return
        known = sequence.tokens[: sequence.computed]
        sequence.digests = block_digests(known, self._budget.block_tokens, sequence.digests)
        self._store.save(sequence.digests[: sequence.computed // self._budget.block_tokens], sequence.lane)

    def drop_prefixes(self) -> None:
        """Forget all KV that was kept for reuse."""
        if self._store is not None:
            self._store.clear()

    def spoiled(self, sequence: Sequence) -> None:
        """The lane of this running sequence holds values that are not numbers."""
        self._cache.clear(sequence.lane)
        if self._store is not None:
            self._store.forget(sequence.digests)
        sequence.computed = 0  # nothing of it is kept

    def _chunk(self, schedule: Schedule, sequence: Sequence, budget: int) -> int:
        """Schedule as much of a prompt as the budget allows: how much that is."""
        size = min(budget, sequence.to_compute)
        if size > 0:
            schedule.prompts.append((sequence, size))
            sequence.touched = self._steps
        return size

    def _grow(self) -> bool:
        """One more token for each running sequence; True when some lost their lanes for it."""
        budget = self._budget
        short = [s for s in self.running if budget.blocks_for(len(s.tokens)) > s.blocks]
        if len(short) <= budget.free:
            for sequence in short:
                sequence.blocks += 1
            budget.free -= len(short)
            return False
        for sequence in sorted(short):
            if sequence.waiting:
                continue  # it was preempted for one before it
            while budget.free == 0:
                last = max(self.running)
                self._preempt(last)
                if last is sequence:
                    break
            if not sequence.waiting:
                sequence.blocks += 1
                budget.free -= 1
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        self.preemptions += 1
        sequence.computed = 0
        self.add(sequence)

    def _admit(self) -> Sequence | None:
        """The first of the queue, in a lane; None when there is none or no room for it."""
        while self._queue and (self._queue[0].ended or not self._queue[0].waiting):
            heapq.heappop(self._queue)
        if not self._queue or len(self.running) >= min(self.limits.max_num_seqs, self._cache.lanes):
            return None
        sequence = self._queue[0]
        blocks = self._budget.blocks_for(len(sequence.tokens) + 1)
        blocks = min(blocks, self._budget.capacity)
        if blocks > self._budget.free:
            return None
        heapq.heappop(self._queue)
        self._dequeued(sequence)
        self._budget.free -= blocks
        sequence.blocks = blocks
        sequence.lane = self._lanes.index(None)
        self._lanes[sequence.lane] = sequence
        self.running.append(sequence)
        self._reuse(sequence)
        return sequence

    def _reuse(self, sequence: Sequence) -> None:
        """Copy in what is known of the sequence's beginning; its last token is always computed."""
        if self._store is None:
            return
        size = self._budget.block_tokens
        sequence.digests = block_digests(sequence.tokens, size, sequence.digests)
        count = self._store.match(sequence.digests[: (len(sequence.tokens) - 1) // size])
        if count:
            self._store.fetch(sequence.digests[:count], sequence.lane)
        sequence.computed = count * size
        if not sequence.scheduled_s:
            sequence.cached = sequence.computed

    def _dequeued(self, sequence: Sequence) -> None:
        sequence.waiting = False
        self.waiting -= 1
        self.waiting_tokens -= len(sequence.tokens)

    def _release(self, sequence: Sequence) -> None:
        self.remember(sequence)
        self.running.remove(sequence)
        self._lanes[sequence.lane] = None
        self._budget.free += sequence.blocks
        sequence.blocks = 0
        sequence.lane = -1

    def _compact(self) -> None:
        """Move the highest lanes into holes, so that the lanes in use are the first ones."""
        count = len(self.running)
        if count == 0 or all(sequence is not None for sequence in self._lanes[:count]):
            return
        for sequence in sorted(self.running, key=lambda s: -s.lane):
            if sequence.lane < count:
                return
            hole = self._lanes.index(None)
            self._cache.move(sequence.lane, hole, sequence.computed)
            self._lanes[sequence.lane], self._lanes[hole] = None, sequence
            sequence.lane = hole
