"""How fast a replica is: by a performance model where there is one, and by its own steps.

The engine counts its steps, their time, and the tokens that went through them. Between two readings
`time = a * steps + b * prompt_tokens + c * generated_tokens` holds to a good approximation (a step's fixed work, one
prompt token, one sequence's token): non-negative least squares over the readings, older ones fading, gives the three.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.optimize import nnls

from loop.contracts import EngineStats

TYPICAL_CONTEXT_TOKENS = 1024
"""Context of a sequence in a well-filled batch; the twin's."""
FADE = 0.98
"""Weight of a reading against the next one."""
_RIDGE = 1e-5
"""Weight of the prior against the readings."""
ENOUGH_STEPS = 20
"""Measured steps from which on the measurement is believed."""


class Costs(Protocol):
    """Nominal speed of one replica (hw_profiles.performance.ReplicaPerformance)."""

    @property
    def prefill_tokens_per_s(self) -> float:
        """Of prefill alone."""

    def iteration_s(self, n_decode: int, kv_decode_tokens: int) -> float:
        """One decode iteration of so many sequences with so much context in all."""


@dataclass(frozen=True, slots=True)
class LinearCosts:
    """A step costs `step_s + prompt_tokens * prompt_token_s + sequences * sequence_s`."""

    step_s: float = 0.002
    prompt_token_s: float = 5e-5
    sequence_s: float = 2e-4

    @property
    def prefill_tokens_per_s(self) -> float:
        """In steps of 512 prompt tokens."""
        return 512.0 / max(self.step_s + 512.0 * self.prompt_token_s, 1e-9)

    def iteration_s(self, n_decode: int, kv_decode_tokens: int) -> float:  # noqa: ARG002 - the port's
        """One decode iteration."""
        return self.step_s + n_decode * self.sequence_s


_PRIOR = np.array([LinearCosts().step_s, LinearCosts().prompt_token_s, LinearCosts().sequence_s])


class Rates:
    """Estimates of one replica, as views show them."""

    def __init__(self, nominal: Costs | None = None) -> None:
        self._nominal = nominal
        self._costs: Costs = nominal or LinearCosts()
        self._last: EngineStats | None = None
        self._steps = 0.0
        self._gram = np.zeros((3, 3))
        self._moment = np.zeros(3)
        self.speed = 1.0
        """Measured against the nominal performance model; 1 where there is none."""

    @property
    def prefill_tokens_per_s(self) -> float:
        """At full batch, at the speed observed now."""
        return self._costs.prefill_tokens_per_s * self.speed

    def decode_step_s(self, running: int, kv_tokens: int) -> float:
        """One decode iteration at this batch."""
        n = max(running, 1)
        return max(self._costs.iteration_s(n, max(kv_tokens, n)) / self.speed, 1e-9)

    def decode_tokens_per_s(self, max_num_seqs: int, kv_capacity_tokens: int) -> float:
        """Of a well-filled batch."""
        n = max(1, min(max_num_seqs, kv_capacity_tokens // TYPICAL_CONTEXT_TOKENS))
        return n / self.decode_step_s(n, n * TYPICAL_CONTEXT_TOKENS)

    def learn(self, stats: EngineStats) -> bool:
        """A reading of the engine's counters; True: the estimates have changed."""
        last, self._last = self._last, stats
        if last is None or stats.steps <= last.steps or stats.step_s <= last.step_s:
            return False
        steps = stats.steps - last.steps
        prompt = max(0, stats.prompt_tokens - last.prompt_tokens - (stats.cached_tokens - last.cached_tokens))
        row = np.array([steps, prompt, stats.generated_tokens - last.generated_tokens], dtype=float)
        weight = 1.0 / steps  # a reading over many steps is no more certain of what one costs
        self._gram = self._gram * FADE + weight * np.outer(row, row)
        self._moment = self._moment * FADE + weight * row * (stats.step_s - last.step_s)
        self._steps = self._steps * FADE + steps
        if self._steps < ENOUGH_STEPS:
            return False
        measured = self._fit()
        if self._nominal is None:
            self._costs = measured
        else:
            n = max(1, stats.running)
            expected_s = self._nominal.iteration_s(n, max(stats.kv_tokens, n))
            self.speed = min(max(expected_s / max(measured.iteration_s(n, 0), 1e-9), 0.05), 2.0)
        return True

    def _fit(self) -> LinearCosts:
        # What the readings leave open (all of one batch size, say) is settled by the prior's proportions.
        scale = float(_PRIOR @ self._moment) / max(float(_PRIOR @ self._gram @ _PRIOR), 1e-30)
        prior = _PRIOR * max(scale, 0.0)
        ridge = np.diag(_RIDGE * float(np.trace(self._gram * np.outer(_PRIOR, _PRIOR))) / _PRIOR**2)
        root = np.linalg.cholesky(self._gram + ridge)
        found, _ = nnls(root.T, np.linalg.solve(root, self._moment + ridge @ prior))
        step_s, prompt_token_s, sequence_s = (float(x) for x in found)
        return LinearCosts(max(step_s, 1e-7), max(prompt_token_s, 1e-9), sequence_s)
