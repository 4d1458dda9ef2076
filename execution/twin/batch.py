"""What one replica holds: its queue, its decode batch in sums, and its KV memory, block by block.

Sequences that decode are not looked at one by one. A context is `offset + step`, a finish lies at a value of the
step counter, and blocks follow from the total context and a histogram of phases (leap.py).
"""

from __future__ import annotations

from heapq import heappop, heappush

from execution.twin.leap import held_blocks
from execution.twin.prefix_cache import PrefixCache
from execution.twin.sequence import Sequence


class Batch:
    """Sequences and memory of one replica; engine.py gives it time."""

    __slots__ = (
        "_batch",
        "_cache",
        "_fresh",
        "_over",
        "_over_count",
        "_over_sum",
        "_queued_todo",
        "anchor_kv",
        "anchor_step",
        "capacity_blocks",
        "decoding",
        "extra_blocks",
        "finishing",
        "kv_tokens",
        "max_batched",
        "max_seqs",
        "partial",
        "phases",
        "prompt_tokens",
        "step",
        "waiting",
    )

    def __init__(
        self, capacity_tokens: int, *, max_seqs: int, max_batched: int, cache: PrefixCache | None
    ) -> None:
        self.capacity_blocks = capacity_tokens >> 4
        self.max_seqs = max_seqs
        self.max_batched = max_batched
        self._cache = cache
        self.waiting: list[tuple[float, float, int, Sequence]] = []
        """Heap of (priority, arrival, number, sequence)."""
        # Those that decode.
        self.step = 0
        self.decoding = 0
        self.kv_tokens = 0
        self.phases = [0] * 16
        self.finishing: list[tuple[int, int, Sequence]] = []
        """Heap of (step at which it is done, number, sequence)."""
        # Those that prefill.
        self.partial: Sequence | None = None
        """The one whose prompt is under way: at most one, the last that was admitted."""
        self._batch: list[tuple[Sequence, int]] = []
        """Sequences with a chunk in the iteration in progress, and how many tokens of it."""
        self.extra_blocks = 0
        """Blocks in use beyond `held_blocks` of those that decode: prompts under way, KV being sent away, and
        the difference between prefix blocks in use and those counted by each of their users."""
        # What a router sees, as of the last change of the batch.
        self._fresh = True
        self.anchor_kv = 0
        self.anchor_step = 0
        self.prompt_tokens = 0
        """Still to prefill, of queued and running sequences."""
        self._queued_todo = 0
        """Predicted output of the sequences that do not decode yet."""
        self._over: list[tuple[int, int, Sequence]] = []
        """Heap of (step at which it outlives its prediction, number, sequence)."""
        self._over_sum = 0
        """Of those steps, over the sequences that have not outlived it yet."""
        self._over_count = 0
        """Sequences that have."""

    # -- the queue -------------------------------------------------------------------------------------

    def _push_waiting(self, entry: tuple[float, float, int, Sequence]) -> None:
        seq = entry[3]
        seq.todo = max(seq.predicted - seq.generated, 1)
        self._queued_todo += seq.todo
        if not seq.resident:
            self.prompt_tokens += seq.target
        heappush(self.waiting, entry)

    def withdraw_unstarted(self) -> list[Sequence]:
        """Take from the queue what no iteration has held yet."""
        kept = []
        taken = []
        for entry in self.waiting:
            seq = entry[3]
            if seq.scheduled_s < 0.0:
                taken.append(seq)
                self._queued_todo -= seq.todo
                self.prompt_tokens -= seq.target
            else:
                kept.append(entry)
        if taken:
            kept.sort()
            self.waiting = kept
        return taken

    # -- memory ----------------------------------------------------------------------------------------

    def free_blocks(self) -> int:
        """Blocks that nobody uses (idle prefix blocks are free: they yield)."""
        return self.capacity_blocks - self.extra_blocks - held_blocks(self.kv_tokens, self.phases, self.step)

    def _fits(self, blocks: int) -> bool:
        """Are so many blocks free, beside those that this iteration's decode steps take?"""
        used = (self.kv_tokens >> 4) + self.decoding + self.extra_blocks
        if used + blocks <= self.capacity_blocks:
            return True
        return blocks <= self.free_blocks() - self.phases[-self.step & 15]

    def reconcile(self) -> None:
        """Evict idle prefix blocks that the growth of the batch has overwritten."""
        cache = self._cache
        if cache is None:
            return
        # At least so many are free, whatever share of its last block each sequence has filled.
        free = self.capacity_blocks - self.extra_blocks - (self.kv_tokens >> 4) - self.decoding
        idle = cache.idle_blocks
        if idle and idle > free:
            cache.shrink(self.free_blocks())

    def release_sent(self, seq: Sequence) -> None:
        """The KV of a sequence that `Host.prefilled` took has left: its blocks are free."""
        self.extra_blocks -= seq.blocks
        self._unpin(seq)

    def _publish(self, seq: Sequence, cache: PrefixCache) -> None:
        """Offer the prompt blocks computed by now to the prefix cache."""
        hashes = seq.request.block_hashes
        done = min(seq.computed // (cache.blocks_each << 4), len(hashes))
        for digest in hashes[seq.hashed : done]:
            if cache.insert(digest):
                if seq.refs is None:
                    seq.refs = []
                seq.refs.append(digest)
                seq.shared += cache.blocks_each
        seq.hashed = max(seq.hashed, done)

    def _unpin(self, seq: Sequence) -> None:
        """Give back its share in prefix blocks, once its own blocks are accounted for."""
        if seq.refs and self._cache is not None:
            self.reconcile()
            self.extra_blocks += seq.shared - self._cache.release(seq.refs)
            seq.refs = None
            seq.shared = 0

    # -- the decode batch ------------------------------------------------------------------------------

    def padded_tokens(self) -> int:
        """Context tokens of those that decode, each counted as long as the longest."""
        longest = max((entry[2].offset for entry in self.finishing), default=-self.step)
        return self.decoding * (longest + self.step)

    def _join_decode(self, seq: Sequence) -> None:
        step = self.step
        context = seq.computed
        seq.offset = offset = context - step
        seq.finish_step = finish = step + seq.request.output_tokens - seq.generated
        self.decoding += 1
        self.kv_tokens += context
        self.phases[offset & 15] += 1
        heappush(self.finishing, (finish, seq.number, seq))
        seq.overrun = overrun = step + seq.predicted - seq.generated
        if overrun <= step:
            seq.over = True
            self._over_count += 1
        else:
            seq.over = False
            self._over_sum += overrun
            if overrun < finish:
                heappush(self._over, (overrun, seq.number, seq))

    def _leave_decode(self, seq: Sequence) -> None:
        self.decoding -= 1
        self.kv_tokens -= seq.offset + self.step
        self.phases[seq.offset & 15] -= 1
        if seq.over:
            self._over_count -= 1
        else:
            self._over_sum -= seq.overrun
            seq.over = True  # so that its entry in `_over` is known to be stale

    # -- preemption (preempt.py) -----------------------------------------------------------------------

    def drop_decode(self, seq: Sequence) -> None:
        """Preempt a decoding sequence. The caller restores the heap order of `finishing`."""
        self._leave_decode(seq)
        finishing = self.finishing
        for i, entry in enumerate(finishing):
            if entry[2] is seq:
                finishing[i] = finishing[-1]
                finishing.pop()
                break
        self._drop(seq)

    def drop_partial(self, seq: Sequence) -> None:
        """Preempt the sequence whose prompt is under way."""
        self.partial = None
        self.extra_blocks -= seq.blocks
        self.prompt_tokens -= seq.target - seq.computed
        self._queued_todo -= seq.todo
        self._drop(seq)

    def _drop(self, seq: Sequence) -> None:
        self._fresh = True
        self._unpin(seq)
        seq.preemptions += 1
        seq.target = seq.request.input_tokens + seq.generated
        seq.computed = seq.blocks = seq.shared = seq.hashed = 0
        seq.resident = False
        self._push_waiting((seq.priority, seq.request.arrival_s, seq.number, seq))

    # -- what a router sees ----------------------------------------------------------------------------

    @property
    def held_tokens(self) -> int:
        """Tokens that hold KV cache, as of the last change of the batch."""
        return self.anchor_kv + (self.extra_blocks << 4)

    def outstanding_tokens(self) -> int:
        """Predicted output tokens still to come, as of the last change of the batch; at least one for each
        sequence that outlives its prediction."""
        step = self.anchor_step
        over = self._over
        while over and over[0][0] <= step:
            overrun, _, seq = heappop(over)
            if not seq.over and seq.overrun == overrun:
                seq.over = True
                self._over_sum -= overrun
                self._over_count += 1
        counted = self.decoding - self._over_count
        return self._queued_todo + self._over_sum - counted * step + self._over_count
