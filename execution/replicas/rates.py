"""How fast a replica is: by a performance model where there is one, and by its own steps.

The engine counts its steps, their time, and the tokens that went through them. With a performance model, what the steps
between two readings should have taken is compared with what they took: the replica's speed. Without one,
`time = a * steps + b * prompt_tokens + c * generated_tokens` holds to a good approximation (a step's fixed work, one
prompt token, one sequence's token): non-negative least squares over the readings, older ones fading, gives the three.

What replicas of one kind have measured together counts a little in each one's estimate, and more and more while it rests:
one that looked slow for a moment would otherwise be sent nothing, measure nothing, and look slow for ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from loop.contracts import EngineStats

Floats = npt.NDArray[np.float64]

CHUNK_TOKENS = 512
"""Prompt tokens that are taken to go through one step."""
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

    def iteration_s(
        self, n_decode: int, kv_decode_tokens: int, chunks: Sequence[tuple[int, int]] = ()
    ) -> float:
        """One iteration of so many decoding sequences with so much context in all, and of parts of prompts, each as
        (tokens, context before them)."""


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

    def iteration_s(
        self,
        n_decode: int,
        kv_decode_tokens: int,  # noqa: ARG002 - the port's
        chunks: Sequence[tuple[int, int]] = (),
    ) -> float:
        """One iteration."""
        return self.step_s + n_decode * self.sequence_s + sum(c for c, _ in chunks) * self.prompt_token_s


_PRIOR = np.array([LinearCosts().step_s, LinearCosts().prompt_token_s, LinearCosts().sequence_s])


class _Readings:
    """Sums over readings, older ones fading."""

    def __init__(self) -> None:
        self.steps = 0.0
        self.gram = np.zeros((3, 3))
        self.moment = np.zeros(3)
        self.times = np.zeros(2)
        """Seconds that the steps should have taken by the performance model, and that they took."""

    def fade(self, by: float) -> None:
        """They count for less."""
        self.steps *= by
        self.gram, self.moment, self.times = self.gram * by, self.moment * by, self.times * by

    def add(self, other: _Readings, scale: float = 1.0) -> None:
        """Count these as well."""
        self.steps += scale * other.steps
        self.gram = self.gram + scale * other.gram
        self.moment = self.moment + scale * other.moment
        self.times = self.times + scale * other.times


class Kin(_Readings):
    """Readings of all replicas of one kind: same model, same kind and number of devices."""


class Rates:
    """Estimates of one replica, as views show them."""

    def __init__(self, nominal: Costs | None = None, kin: Kin | None = None) -> None:
        """`nominal`: a performance model's; `kin`: shared with replicas of the same kind; None: it has no like."""
        self._nominal = nominal
        self._kin = kin or Kin()
        self._costs: Costs = nominal or LinearCosts()
        self._last: EngineStats | None = None
        self._own = _Readings()
        self.speed = 1.0
        """Measured against the nominal performance model; 1 where there is none."""
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
        reading = _reading(last, stats)
        if self._nominal is not None:
            reading.times = np.array([_expected_s(self._nominal, last, stats), stats.step_s - last.step_s])
        for sums in (self._own, self._kin):
            sums.fade(FADE)
            sums.add(reading)
        return self._settle()

    def _rest(self) -> bool:
        """It has nothing to do: what it measured itself grows old, and what its like measure takes its place."""
        if self._own.steps < 1.0:
            return False
        self._own.fade(REST)
        return self._settle()

    def _settle(self) -> bool:
        """Estimate anew; False: too little is known."""
        known = _Readings()
        known.add(self._own)
        if self._kin.steps >= ENOUGH_STEPS:
            known.add(self._kin, KIN_STEPS / self._kin.steps)
        if known.steps < ENOUGH_STEPS:
            return False
        if self._nominal is None:
            self._costs = _fit(known.gram, known.moment)
        else:
            expected_s, took_s = known.times.tolist()
            self.speed = min(max(expected_s / max(took_s, 1e-9), 0.05), 2.0)
        return True


def _between(last: EngineStats, stats: EngineStats) -> tuple[int, int, int]:
    """(steps, prompt tokens computed, tokens generated) from one reading to the next."""
    prompt = stats.prompt_tokens - last.prompt_tokens - (stats.cached_tokens - last.cached_tokens)
    return stats.steps - last.steps, max(0, prompt), stats.generated_tokens - last.generated_tokens


def _reading(last: EngineStats, stats: EngineStats) -> _Readings:
    row = np.array(_between(last, stats), dtype=float)
    weight = 1.0 / row[0]  # a reading over many steps is no more certain of what one costs
    found = _Readings()
    found.steps = float(row[0])
    found.gram, found.moment = weight * np.outer(row, row), weight * row * (stats.step_s - last.step_s)
    return found


def _expected_s(nominal: Costs, last: EngineStats, stats: EngineStats) -> float:
    """What the steps from one reading to the next should have taken: all decode as many sequences with as much context,
    and prompts went through as few of them as possible."""
    steps, prompt, generated = _between(last, stats)
    sequences = max(1, round(generated / steps)) if generated else 0
    contexts = max(sequences, (last.kv_tokens + stats.kv_tokens) // 2)
    with_prompts = min(steps, math.ceil(prompt / CHUNK_TOKENS))
    expected_s = (steps - with_prompts) * nominal.iteration_s(max(1, sequences), max(1, contexts))
    if with_prompts:
        chunk = max(1, round(prompt / with_prompts))
        expected_s += with_prompts * nominal.iteration_s(sequences, contexts, ((chunk, 0),))
    return expected_s


def _fit(gram: Floats, moment: Floats) -> LinearCosts:
    # What the readings leave open (all of one batch size, say) is settled by the prior's proportions.
    scale = float(_PRIOR @ moment) / max(float(_PRIOR @ gram @ _PRIOR), 1e-30)
    prior = _PRIOR * max(scale, 0.0)
    ridge = np.diag(_RIDGE * float(np.trace(gram * np.outer(_PRIOR, _PRIOR))) / _PRIOR**2)
    root = np.linalg.cholesky(gram + ridge)
    found, _ = nnls(root.T, np.linalg.solve(root, moment + ridge @ prior))
    step_s, prompt_token_s, sequence_s = (float(x) for x in found)
    return LinearCosts(max(step_s, 1e-7), max(prompt_token_s, 1e-9), sequence_s)
