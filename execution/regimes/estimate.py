"""What a variant costs, learned online: a discounted mean of log seconds with its uncertainty, and a drift detector."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_WINDOW = 64.0
"""Samples that count."""
_PRIOR_SIGMA = 0.3
"""Of log seconds, before anything is known: a third up or down."""
_PRIOR_WEIGHT = 2.0
_SLACK, _LIMIT, _CLIP = 0.75, 12.0, 3.0
"""Of the drift detector, in standard deviations."""


@dataclass(slots=True)
class Estimate:
    """Seconds of a call. Logs, since noise on a busy machine multiplies."""

    count: int = 0
    weight: float = 0.0
    mean: float = 0.0
    _spread: float = 0.0
    _up: float = field(default=0.0, repr=False)
    _down: float = field(default=0.0, repr=False)

    def add(self, seconds: float) -> bool:
        """Learn one call; True when the cost has drifted (a two-sided CUSUM: Page, 1954), and is learned anew."""
        x = math.log(max(seconds, 1e-9))
        drifted = self.count >= 16 and self._watch(x)
        if drifted:
            self.forget(x)
            return True
        keep = 1.0 - 1.0 / _WINDOW
        self.count += 1
        self.weight = keep * self.weight + 1.0
        before = x - self.mean
        self.mean += before / self.weight
        self._spread = keep * self._spread + before * (x - self.mean)
        return False

    def forget(self, x: float | None = None) -> None:
        """Start again, from a log second if one is given."""
        self.count, self.weight, self.mean, self._spread = 0, 0.0, 0.0, 0.0
        self._up = self._down = 0.0
        if x is not None:
            self.count, self.weight, self.mean = 1, 1.0, x

    @property
    def seconds(self) -> float:
        """The (geometric) mean; infinite when nothing is known."""
        return math.exp(self.mean) if self.count else math.inf

    @property
    def sigma(self) -> float:
        """Standard deviation of log seconds, towards a prior while samples are few."""
        spread = self._spread + _PRIOR_WEIGHT * _PRIOR_SIGMA**2
        return math.sqrt(spread / (self.weight + _PRIOR_WEIGHT))

    @property
    def error(self) -> float:
        """Standard error of the mean of log seconds."""
        return self.sigma / math.sqrt(max(self.weight, 1.0))

    def _watch(self, x: float) -> bool:
        z = max(-_CLIP, min(_CLIP, (x - self.mean) / max(self.sigma, 0.02)))
        self._up = max(0.0, self._up + z - _SLACK)
        self._down = max(0.0, self._down - z - _SLACK)
        return max(self._up, self._down) > _LIMIT


def faster(challenger: Estimate, holder: Estimate, *, gain: float, confidence: float) -> bool:
    """Whether the challenger is faster by at least `gain` (0.03: 3 %), and by `confidence` standard errors."""
    if not challenger.count or not holder.count:
        return False
    lead = holder.mean - challenger.mean
    return lead > math.log1p(gain) and lead > confidence * math.hypot(challenger.error, holder.error)
