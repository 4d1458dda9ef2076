"""What operators and idioms have been worth, under the present demand and before: who is asked next.

A discounted bandit with a small context: the load drifts, so old successes fade (discounted UCB, Garivier and
Moulines 2011, here with sampling in proportion); and what paid under a demand like the present one counts more
than what paid elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from loop.contracts import Observation

MEMORY = 0.97
"""Share of all evidence that is left after each new piece of it."""
_ELSEWHERE = 0.35
"""Weight of evidence from other regimes."""
_DOUBT = 3.0
"""Trials that the prior counts for."""
_FLOOR = 0.03

Regime = tuple[int, ...]


def regime_of(obs: Observation | None) -> Regime:
    """The demand in coarse steps: requests and lengths to about a factor of 2, lost and slow devices."""
    if obs is None:
        return ()
    steps: list[int] = []
    for demand in obs.demand:
        requests = demand.waiting + demand.running or demand.arrived
        steps += [_step(requests), _step(demand.input_tokens_mean), _step(demand.output_tokens_mean)]
    whole = sum(d.available for d in obs.devices) == len(obs.devices)
    slow = any(d.available and d.speed < 0.9 for d in obs.devices)
    return (*steps, int(whole), int(slow))


def _step(value: float) -> int:
    return round(math.log2(value)) if value >= 1 else -1


@dataclass(slots=True)
class _Evidence:
    tried: float = 0.0
    won: float = 0.0


@dataclass(slots=True)
class Bandit:
    """Evidence by arm and regime; arms are any hashable names. Deterministic."""

    priors: Mapping[Hashable, float]
    """Expected success of each arm before anything was seen, 0 to 1."""

    _here: dict[tuple[Regime, Hashable], _Evidence] = field(default_factory=dict)
    _all: dict[Hashable, _Evidence] = field(default_factory=dict)

    def learn(self, arm: Hashable, regime: Regime, success: float) -> None:
        """An arm was tried, with a success from 0 to 1."""
        for evidence in (*self._here.values(), *self._all.values()):
            evidence.tried *= MEMORY
            evidence.won *= MEMORY
        for evidence in (
            self._here.setdefault((regime, arm), _Evidence()),
            self._all.setdefault(arm, _Evidence()),
        ):
            evidence.tried += 1.0
            evidence.won += success
        self._forget()

    def worth(self, arm: Hashable, regime: Regime) -> float:
        """Expected success of an arm now; never zero."""
        here = self._here.get((regime, arm), _Evidence())
        everywhere = self._all.get(arm, _Evidence())
        tried = here.tried + _ELSEWHERE * max(0.0, everywhere.tried - here.tried)
        won = here.won + _ELSEWHERE * max(0.0, everywhere.won - here.won)
        return (won + _DOUBT * self.priors.get(arm, 0.3)) / (tried + _DOUBT) + _FLOOR

    def weights(self, arms: Sequence[Hashable], regime: Regime, sharpness: float = 1.0) -> list[float]:
        """Weights to sample arms by; a higher `sharpness` prefers the best more."""
        return [self.worth(arm, regime) ** sharpness for arm in arms]

    def _forget(self) -> None:
        for key in [key for key, evidence in self._here.items() if evidence.tried < 0.02]:
            del self._here[key]


def success_of(relative: float | None) -> float:
    """0 for what failed or did worse; from a half on what won, 1 from a saving of 5 % on."""
    if relative is None or relative >= 1.0:
        return 0.0
    return min(1.0, 0.5 + 10.0 * (1.0 - relative))
