"""One replica's speed, as the simulator's inner loop asks for it: plain floats, everything cached.

Iteration = dense(tokens) + head(sequences) + decode attention(n, kv) + sum of prefill attention(chunk,
context) + engine overhead. For a fixed number of decoding sequences the time is piecewise linear in the
total context, so that a simulator can leap over decode steps in closed form and land where stepping lands.

Pipeline parallelism: the batch is split evenly into `pp` micro-batches that follow each other through the
stages, so an iteration (one token for each sequence) takes `pp` times the slowest stage on a `pp`-th of the
batch, plus the transfers between stages (the steady state of a pipeline with as many batches in flight as it
has stages, as vLLM schedules it).

Data parallelism in lock step (`dp` > 1, mixture-of-experts models with the experts spread over the ranks):
sequences are spread evenly over the ranks, prompt chunks go to the rank with fewest tokens so far, and all
wait for the slowest, since they meet in every layer's expert exchange. The experts see the mean of the ranks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from hw_profiles.performance.capacity import InfeasibleError
from hw_profiles.performance.coefficients import EngineFit
from hw_profiles.performance.operators import QUERY_BLOCK_TOKENS, StageOperators
from hw_profiles.performance.pieces import Pieces, floored

__all__ = ["InfeasibleError", "ReplicaPerformance"]

KV_KNOTS = [float(base << i) for i in range(4, 26) for base in (2, 3)]
"""Total context at which decode attention is evaluated; between them it is linear."""
CONTEXT_KNOTS = [0.0, *(float(1 << i) for i in (8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20))]


class ReplicaPerformance:
    """Timing and capacity of one replica. Build it with `PerformanceModel.replica`."""

    padded: bool = False
    """Contexts of a batch are padded to the longest (StepFit.padded)."""

    __slots__ = (
        "_base_s",
        "_decode",
        "_dense",
        "_dense_knots",
        "_dp",
        "_expert_knots",
        "_experts",
        "_floor_s",
        "_fresh",
        "_has_experts",
        "_head",
        "_idle_block_s",
        "_launch_s",
        "_mixed",
        "_per_sequence_s",
        "_pp",
        "_prefill",
        "_stages",
        "_transfer_s",
        "busy_watts",
        "first_token_s",
        "idle_watts",
        "kv_bytes_per_token",
        "kv_capacity_tokens",
        "start_s",
    )

    def __init__(
        self,
        stages: Sequence[StageOperators],
        *,
        pp: int,
        dp: int = 1,
        engine: EngineFit,
        overhead_factor: float,
        transfer_s: Callable[[int], float],
        kv_capacity_tokens: int,
        kv_bytes_per_token: int,
        start_s: float,
        busy_watts: float,
        idle_watts: float,
    ) -> None:
        self._stages = tuple(stages)
        self._pp = pp
        self._dp = dp
        # Micro-batches follow each other through the stages, each with the engine's work of its own.
        self._base_s = engine.base_s * overhead_factor * pp
        self._per_sequence_s = engine.per_sequence_s * overhead_factor
        self._floor_s = engine.floor_s * overhead_factor * pp
        self._transfer_s = transfer_s
        self.kv_capacity_tokens = kv_capacity_tokens
        self.kv_bytes_per_token = kv_bytes_per_token
        self.start_s = start_s
        self.busy_watts = busy_watts
        self.idle_watts = idle_watts
        self.first_token_s = engine.first_token_s * overhead_factor
        self._dense: dict[int, float] = {}
        self._dense_knots: dict[int, float] = {}
        self._experts: dict[int, float] = {}
        self._expert_knots: dict[int, float] = {}
        self._head: dict[int, float] = {}
        self._decode: dict[int, Pieces] = {}
        self._mixed: dict[int, Pieces] = {}
        self._prefill: dict[int, Pieces] = {}
        self._fresh: dict[int, float] = {}
        """Attention of a chunk with no context before it: most chunks, and no piece is needed."""
        self._has_experts = any(stage.experts_s(1) > 0.0 for stage in self._stages)
        self._launch_s = max(stage.attention_launch_s for stage in self._stages)
        self._idle_block_s = max(stage.idle_block_s for stage in self._stages)

    def iteration_s(
        self, n_decode: int, kv_decode_tokens: int, chunks: Sequence[tuple[int, int]] = ()
    ) -> float:
        """One engine iteration, in seconds.

        `n_decode` sequences with contexts that sum to `kv_decode_tokens`, and prompt chunks as
        (chunk_tokens, context_tokens before the chunk). 0.0 for an empty batch.
        """
        if not chunks:
            if n_decode <= 0:
                return 0.0
            pieces = self._decode.get(n_decode) or self._decode_pieces(n_decode)
            i = bisect_right(pieces.ends, kv_decode_tokens)
            base_s, slope = pieces.lines[i] or pieces.line(i)
            return base_s + slope * kv_decode_tokens
        if self._dp > 1:
            return self._lockstep_s(n_decode, kv_decode_tokens, chunks)
        tokens = n_decode
        for chunk, _ in chunks:
            tokens += chunk
        attention_s = self._prompts_s(chunks)
        if n_decode > 0:
            attention_s += self._beside_s(n_decode, kv_decode_tokens, chunks)
        sequences = n_decode + len(chunks)
        kernels_s = attention_s + self._fixed_s(tokens, tokens, sequences)
        kernels_s = max(kernels_s, self._floor_s)
        return kernels_s + self._base_s + self._per_sequence_s * sequences

    def decode_segment(self, n_decode: int, kv_decode_tokens: int) -> tuple[float, float, float]:
        """(base_s, slope_s_per_token, kv_end): pure decode costs base + slope * kv for kv in [now, kv_end)."""
        pieces = self._decode.get(n_decode) or self._decode_pieces(n_decode)
        i = bisect_right(pieces.ends, kv_decode_tokens)
        base_s, slope = pieces.lines[i] or pieces.line(i)
        return base_s, slope, pieces.ends[i]

    def _lockstep_s(self, n_decode: int, kv_tokens: int, chunks: Sequence[tuple[int, int]]) -> float:
        """An iteration with prompts on `dp` ranks: the slowest rank, and the experts on the mean."""
        dp = self._dp
        share, kv = -(-n_decode // dp), kv_tokens // dp
        loads = [share] * dp
        dealt: list[list[tuple[int, int]]] = [[] for _ in range(dp)]
        for chunk, context in sorted(chunks, reverse=True):
            rank = loads.index(min(loads))
            loads[rank] += chunk
            dealt[rank].append((chunk, context))
        mean = -(-sum(loads) // dp)
        slowest_s = 0.0
        for load, own in zip(loads, dealt, strict=True):
            attention_s = self._prompts_s(own) if own else 0.0
            if share > 0:
                attention_s += self._beside_s(share, kv, own)
            rank_s = max(self._floor_s, attention_s + self._fixed_s(load, mean, share + len(own)))
            slowest_s = max(slowest_s, rank_s + self._per_sequence_s * (share + len(own)))
        return slowest_s + self._base_s

    def _prompts_s(self, chunks: Sequence[tuple[int, int]]) -> float:
        """Attention of prompt chunks, in one launch."""
        attention_s = self._launch_s
        for chunk, context in chunks:
            if not context:
                attention_s += self._fresh.get(chunk) or self._fresh_s(chunk)
                continue
            pieces = self._prefill.get(chunk) or self._prefill_pieces(chunk)
            i = bisect_right(pieces.ends, context)
            base_s, slope = pieces.lines[i] or pieces.line(i)
            attention_s += base_s + slope * context
        return attention_s

    def _beside_s(self, n: int, kv_tokens: int, chunks: Sequence[tuple[int, int]]) -> float:
        """Attention of `n` decoding sequences in a batch with prompt chunks, whose launch is paid already."""
        pieces = self._mixed.get(n) or self._mixed_pieces(n)
        i = bisect_right(pieces.ends, kv_tokens)
        base_s, slope = pieces.lines[i] or pieces.line(i)
        longest = 0
        for chunk, _ in chunks:
            longest = chunk if chunk > longest else longest
        idle_s = self._idle_block_s * n * (longest // QUERY_BLOCK_TOKENS)
        return base_s + slope * kv_tokens + idle_s

    def decode_step_s(self, n: int, kv: int) -> float:
        """One pure decode iteration of `n` sequences with `kv` tokens of context in total."""
        return self.iteration_s(n, kv)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Rate of prompts alone, in full chunks of 2048 tokens."""
        return 2048.0 / self.iteration_s(0, 0, ((2048, 0),))

    def _fixed_s(self, tokens: int, expert_tokens: int, sequences: int) -> float:
        """Kernels whose time does not depend on the context: dense layers, experts, head, transfers."""
        dense_s = self._dense.get(tokens)
        if dense_s is None:
            dense_s = self._dense[tokens] = _interpolated(self._dense_at, tokens)
        head_s = self._head.get(sequences)
        if head_s is None:
            share = -(-sequences // self._pp)
            # The head runs on the last stage only, yet it holds up every micro-batch there.
            head_s = self._pp * max(stage.head_s(share) for stage in self._stages)
            self._head[sequences] = head_s
        if not self._has_experts:
            return dense_s + head_s
        experts_s = self._experts.get(expert_tokens)
        if experts_s is None:
            experts_s = self._experts[expert_tokens] = _interpolated(self._experts_at, expert_tokens)
        return dense_s + experts_s + head_s

    def _dense_at(self, tokens: int) -> float:
        found = self._dense_knots.get(tokens)
        if found is None:
            share = -(-tokens // self._pp)
            found = max(stage.dense_s(share) for stage in self._stages) + self._transfer_s(share)
            found = self._dense_knots[tokens] = self._pp * found
        return found

    def _experts_at(self, tokens: int) -> float:
        found = self._expert_knots.get(tokens)
        if found is None:
            share = -(-tokens // self._pp)
            found = self._pp * max(stage.experts_s(share) for stage in self._stages)
            self._expert_knots[tokens] = found
        return found

    def _decode_pieces(self, n: int) -> Pieces:
        """Pure decode of `n` sequences in all: a whole iteration, by total context."""
        dp = self._dp
        share = -(-n // dp)
        overhead_s = self._base_s + self._per_sequence_s * share
        kernels_s = self._fixed_s(share, share, share)
        knots, at = self._attention(share, kernels_s + overhead_s, mixed=False)
        if kernels_s >= self._floor_s:
            pieces = Pieces(knots, at, dp)
        else:
            pieces = floored(knots, at, self._floor_s + overhead_s, dp)
        self._decode[n] = pieces
        return pieces

    def _mixed_pieces(self, n: int) -> Pieces:
        """Attention of `n` decoding sequences of one rank beside prompt chunks, whose launch is paid."""
        pieces = self._mixed[n] = Pieces(*self._attention(n, -self._launch_s, mixed=True))
        return pieces

    def _attention(
        self, n: int, offset_s: float, *, mixed: bool
    ) -> tuple[list[float], Callable[[float], float]]:
        """Knots, and decode attention of `n` sequences at a total context, with `offset_s` added."""
        share, pp, stages = -(-n // self._pp), self._pp, self._stages

        def at(kv: float) -> float:
            attention_s = max([stage.decode_attention_s(share, kv / pp, mixed=mixed) for stage in stages])
            return pp * attention_s + offset_s

        return [float(n), *KV_KNOTS[bisect_right(KV_KNOTS, n) :]], at

    def _fresh_s(self, chunk: int) -> float:
        found = self._fresh[chunk] = self._prefill_s(chunk, 0)
        return found

    def _prefill_pieces(self, chunk: int) -> Pieces:
        """Attention of one prompt chunk, by the context before it."""

        def at(context: float) -> float:
            return self._prefill_s(chunk, int(context))

        pieces = self._prefill[chunk] = Pieces(CONTEXT_KNOTS, at)
        return pieces

    def _prefill_s(self, chunk: int, context: int) -> float:
        """Attention of one prompt chunk, whose launch is paid."""
        # Micro-batches split the chunk's tokens: together they attend to as many pairs as one would.
        return max([stage.prefill_attention_s(chunk, context) for stage in self._stages]) - self._launch_s


def _interpolated(at: Callable[[int], float], tokens: int) -> float:
    """Exact to 64 tokens, then linear between 32 to 64 knots an octave: few enough to fill quickly."""
    step = 1 if tokens <= 64 else 1 << (tokens.bit_length() - 6)
    low = tokens - tokens % step
    low_s = at(low)
    if low == tokens:
        return low_s
    return low_s + (at(low + step) - low_s) * (tokens - low) / step
