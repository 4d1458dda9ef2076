"""How fast a replica is: by a performance model where there is one, and by its own steps.

The engine counts its steps, their time, and the tokens that went through them. Between two readings
`time = a * steps + b * prompt_tokens + c * generated_tokens` holds to a good approximation (a step's fixed work, one
prompt token, one sequence's token): non-negative least squares over the readings, older ones fading, gives the three.

What replicas of one kind have measured together counts a little in each one's estimate, and more and more while it rests:
one that looked slow for a moment would otherwise be sent nothing, measure nothing, and look slow for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from loop.contracts import EngineStats

Floats = npt.NDArray[np.float64]

TYPICAL_CONTEXT_TOKENS = 1024
"""Context of a sequence in a well-filled batch; the twin's."""
FADE = 0.98
"""Weight of a reading against the next one."""
_RIDGE = 1e-5
"""Weight of the prior against the readings."""
REST = 0.95
"""Weight of a replica's own readings against the same ones a reading later, while it has nothing to do."""
KIN_STEPS = 40.0
"""What the kind's readings count for, in steps of the replica's own."""
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


class Kin:
    """Readings of all replicas of one kind, older ones fading: same model, same kind and number of devices."""

    def __init__(self) -> None:
        self._steps = 0.0
        self._gram = np.zeros((3, 3))
        self._moment = np.zeros(3)

    def learn(self, steps: float, gram: Floats, moment: Floats) -> None:
        """One reading of one of them."""
        self._steps = self._steps * FADE + steps
        self._gram = self._gram * FADE + gram
        self._moment = self._moment * FADE + moment

    def share(self) -> tuple[float, Floats, Floats]:
        """(steps, gram, moment) that each of them may count as its own; zeros while little is known."""
        if self._steps < ENOUGH_STEPS:
            return 0.0, np.zeros((3, 3)), np.zeros(3)
        scale = KIN_STEPS / self._steps
        return KIN_STEPS, self._gram * scale, self._moment * scale


class Rates:
    """Estimates of one replica, as views show them."""

    def __init__(self, nominal: Costs | None = None, kin: Kin | None = None) -> None:
        """`nominal`: a performance model's; `kin`: shared with replicas of the same kind; None: it has no like."""
        self._nominal = nominal
        self._kin = kin or Kin()
        self._costs: Costs = nominal or LinearCosts()
        self._last: EngineStats | None = None
        self._steps = 0.0
        self._gram = np.zeros((3, 3))
        self._moment = np.zeros(3)
        self._busy = (1, 1)
        """(sequences, tokens of context) when it last worked."""
        self.speed = 1.0
        """Measured against the nominal performance model; 1 where there is none."""
        if nominal is None:
            self._settle()

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
        if last is None:
            return False
        if stats.steps <= last.steps or stats.step_s <= last.step_s:
            return not (stats.running or stats.waiting) and self._rest()
        steps = stats.steps - last.steps
        prompt = max(0, stats.prompt_tokens - last.prompt_tokens - (stats.cached_tokens - last.cached_tokens))
        row = np.array([steps, prompt, stats.generated_tokens - last.generated_tokens], dtype=float)
        weight = 1.0 / steps  # a reading over many steps is no more certain of what one costs
        gram, moment = weight * np.outer(row, row), weight * row * (stats.step_s - last.step_s)
        self._kin.learn(steps, gram, moment)
        self._steps = self._steps * FADE + steps
        self._gram = self._gram * FADE + gram
        self._moment = self._moment * FADE + moment
        n = max(1, stats.running)
        self._busy = n, max(stats.kv_tokens, n)
        return self._settle()

    def _rest(self) -> bool:
        """It has nothing to do: what it measured itself grows old, and what its like measure takes its place."""
        if self._steps < 1.0:
            return False
        self._steps *= REST
        self._gram = self._gram * REST
        self._moment = self._moment * REST
        return self._settle()

    def _settle(self) -> bool:
        """Estimate anew; False: too little is known."""
        steps, gram, moment = self._kin.share()
        if self._steps + steps < ENOUGH_STEPS:
            return False
        measured = _fit(self._gram + gram, self._moment + moment)
        if self._nominal is None:
            self._costs = measured
        else:
            n, kv_tokens = self._busy
            expected_s = self._nominal.iteration_s(n, kv_tokens)
            self.speed = min(max(expected_s / max(measured.iteration_s(n, 0), 1e-9), 0.05), 2.0)
        return True


def _fit(gram: Floats, moment: Floats) -> LinearCosts:
    # What the readings leave open (all of one batch size, say) is settled by the prior's proportions.
    scale = float(_PRIOR @ moment) / max(float(_PRIOR @ gram @ _PRIOR), 1e-30)
    prior = _PRIOR * max(scale, 0.0)
    ridge = np.diag(_RIDGE * float(np.trace(gram * np.outer(_PRIOR, _PRIOR))) / _PRIOR**2)
    root = np.linalg.cholesky(gram + ridge)
    found, _ = nnls(root.T, np.linalg.solve(root, moment + ridge @ prior))
    step_s, prompt_token_s, sequence_s = (float(x) for x in found)
    return LinearCosts(max(step_s, 1e-7), max(prompt_token_s, 1e-9), sequence_s)
