"""What other regimes tell of a variant that is new in this one: its cost as a multiple of what serves meanwhile.

    prior.learn(regime, "merged", math.log(cost / cost_of_the_stand_in))
    prior.hopeless("merged", {"compiled"})      # not worth opening, let alone trying, where "compiled" is at hand

One figure a regime; regimes differ, so their spread counts, and a name seen in one regime only is never hopeless.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean, stdev

_LEAST_SPREAD = 0.1
"""Of log ratios between regimes, however alike the few are that were seen."""


class Prior:
    """Log ratios by name and regime."""

    def __init__(self, *, confidence: float = 1.0, regimes: int = 2) -> None:
        """`confidence`: standard deviations by which another must lead; `regimes`: fewest to conclude from."""
        self._confidence, self._regimes = confidence, regimes
        self._ratios: dict[str, dict[object, float]] = {}

    def learn(self, regime: object, name: str, log_ratio: float) -> None:
        """What a name costs in a regime, relative to the stand-in; the newest counts."""
        if math.isfinite(log_ratio):
            self._ratios.setdefault(name, {})[regime] = log_ratio

    def expected(self, name: str) -> float:
        """Mean log ratio; 0, as good as the stand-in, where nothing is known."""
        known = self._ratios.get(name)
        return fmean(known.values()) if known else 0.0

    def hopeless(self, name: str, others: Iterable[str]) -> bool:
        """Whether one of the others was clearly better in the regimes that saw both."""
        mine = self._ratios.get(name, {})
        return any(self._behind(mine, self._ratios.get(other, {})) for other in others if other != name)

    def _behind(self, mine: Mapping[object, float], theirs: Mapping[object, float]) -> bool:
        leads = [mine[regime] - theirs[regime] for regime in mine if regime in theirs]
        if len(leads) < self._regimes:
            return False
        return fmean(leads) > self._confidence * max(stdev(leads), _LEAST_SPREAD)
