"""A replica whose steps were measured at work, as a whole: no operators, one line a batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hw_profiles.performance.coefficients import StepFit
from hw_profiles.performance.operators import Multipliers
from hw_profiles.performance.replica import ReplicaPerformance


class MeasuredReplica(ReplicaPerformance):
    """ReplicaPerformance from a StepFit: one device, no parallelism."""

    __slots__ = (
        "_contexts_s",
        "_fit",
        "_pair_s",
        "_prompt_s",
        "_prompt_token_s",
        "_sizes_s",
        "contention",
        "padded",
    )

    def __init__(
        self,
        fit: StepFit,
        multipliers: Multipliers,
        *,
        kv_bytes_per_token: int,
        busy_watts: float,
        idle_watts: float,
    ) -> None:
        # Not super().__init__: there are no operators; every method that would ask them is replaced below.
        self._fit = fit
        self._sizes_s: dict[int, float] = {}
        dense, attention = multipliers.dense, multipliers.attention
        self._contexts_s = fit.per_kv_token_s * attention
        self._pair_s = fit.per_pair_s * attention
        self._prompt_s = fit.per_prompt_s * multipliers.overhead
        self._prompt_token_s = fit.per_prompt_token_s * dense
        # The fixed part of a step is the engine's work, what a sequence adds is arithmetic.
        fixed_s = fit.size_s(1)
        for n in range(1, 1 + max(512, 2 * fit.sizes[-1])):
            self._sizes_s[n] = fixed_s * multipliers.overhead + (fit.size_s(n) - fixed_s) * dense
        self.contention = fit.contention
        self.padded = fit.padded
        self.kv_capacity_tokens = fit.kv_capacity_tokens
        self.kv_bytes_per_token = kv_bytes_per_token
        self.start_s = fit.start_s * multipliers.start
        self.first_token_s = fit.first_token_s * multipliers.overhead
        self.busy_watts = busy_watts
        self.idle_watts = idle_watts

    def iteration_s(
        self, n_decode: int, kv_decode_tokens: int, chunks: Sequence[tuple[int, int]] = ()
    ) -> float:
        """One engine step, in seconds; 0.0 for an empty batch. Where attention is `padded`, `kv_decode_tokens` is
        sequences x longest context."""
        sequences = n_decode + len(chunks)
        if sequences <= 0:
            return 0.0
        step_s = self._size_s(sequences) + self._contexts_s * kv_decode_tokens
        for chunk, context in chunks:
            pairs = chunk * (context + 0.5 * chunk)
            step_s += self._prompt_s + self._prompt_token_s * chunk + self._pair_s * pairs
        return step_s

    def decode_segment(self, n_decode: int, kv_decode_tokens: int) -> tuple[float, float, float]:
        """(base_s, slope_s_per_token, kv_end): one line for all contexts."""
        del kv_decode_tokens
        return self._size_s(n_decode), self._contexts_s, math.inf

    def _size_s(self, sequences: int) -> float:
        found = self._sizes_s.get(sequences)
        if found is None:
            last = len(self._sizes_s)
            slope = self._sizes_s[last] - self._sizes_s[last - 1]
            found = self._sizes_s[last] + slope * (sequences - last)
        return found
