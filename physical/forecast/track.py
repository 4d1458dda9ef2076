"""One quantity at one horizon: forecasts go out, what came is held against them, and the next ones are better for it.

A model's forecast is combined with saying that nothing changes and with the long-run mean, by a regression on what came
(combining forecasts: Bates and Granger, 1969): a model that is no better than persistence is soon not believed. The interval
holds the errors made lately; how far into their tails it reaches is set by how often it was missed (adaptive
conformal inference: Gibbs and Candes, 2021), so that it covers what it says also while the world drifts.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import NamedTuple

from physical.forecast.rls import RecursiveLeastSquares

_KEPT_ERRORS = 300
_KEPT_A_SECOND = 20
"""More are kept at longer horizons, since their errors come in long runs."""
_STEP = 0.02
"""How fast the interval follows its misses."""
_MEAN_SHARE = 0.005
_LATE_S = 2.0
"""An outcome that comes so much later than forecast says nothing."""


class Said(NamedTuple):
    """A forecast that waits for its outcome."""

    due_s: float
    now: float
    """What it was when the forecast was made: persistence."""
    features: tuple[float, float]
    value: float
    low: float
    high: float


class Track:
    """Forecasts of one quantity at one horizon."""

    def __init__(self, horizon_s: float, confidence: float, width: float, weight: float = 0.5) -> None:
        """`width`: half of the interval before anything is known, in the quantity's unit; `weight`: how far the model is
        believed at first.
        """
        self.horizon_s = horizon_s
        self.confidence = confidence
        self._waiting: deque[Said] = deque()
        # Begun with as many errors, spread over the first width, as one outcome that is independent of others makes.
        first = max(8, round(horizon_s))
        spread = width / confidence
        begun = [spread * (2 * (i + 0.5) / first - 1) for i in range(first)]
        kept = _KEPT_ERRORS + round(_KEPT_A_SECOND * horizon_s)
        self._errors: deque[float] = deque(begun, maxlen=kept)
        self._sorted: list[float] = sorted(begun)
        self._reach = 1 - confidence
        self._scale = width
        self._mean: float | None = None
        # Forecasts of a minute that are made every second share most of their outcome: that many count as one.
        self._noise = max(1.0, horizon_s)
        self._combine = RecursiveLeastSquares((weight, 0.0), (0.3, 0.2), 1 - 0.002 / self._noise)
        self.count = 0
        self._absolute = self._persistent = self._square = self._persistent_square = 0.0
        self._covered = 0

    def say(
        self, at_s: float, now: float, model: float, lowest: float = -math.inf, highest: float = math.inf
    ) -> tuple[float, float, float]:
        """(value, low, high) for `horizon_s` after `at_s`, between `lowest` and `highest`; its outcome is awaited."""
        mean = now if self._mean is None else self._mean
        features = (model - now, mean - now)
        value = min(highest, max(lowest, now + self._combine(features)))
        below, above = self._bounds()
        low, high = max(lowest, value + below), min(highest, value + above)
        self._waiting.append(
            Said(at_s + self.horizon_s, now, features, value, min(low, value), max(high, value))
        )
        return self._waiting[-1].value, self._waiting[-1].low, self._waiting[-1].high

    def came(self, at_s: float, actual: float) -> None:
        """Hold what is seen now against what was said of it."""
        self._mean = actual if self._mean is None else self._mean + _MEAN_SHARE * (actual - self._mean)
        while self._waiting and self._waiting[0].due_s <= at_s + 1e-9:
            said = self._waiting.popleft()
            if at_s - said.due_s <= _LATE_S:
                self._learn(said, actual)

    def chance_above(self, value: float, limit: float) -> float:
        """How probable it is that the outcome reaches `limit` when `value` is forecast, by the errors made lately."""
        above = len(self._sorted) - bisect_left(self._sorted, limit - value)
        return (above + 0.5) / (len(self._sorted) + 1.0)

    @property
    def scores(self) -> tuple[float, float, float, float]:
        """(mean absolute error, persistence's, skill, coverage); zeros of nothing."""
        if not self.count:
            return 0.0, 0.0, 0.0, 0.0
        skill = 1 - self._square / self._persistent_square if self._persistent_square > 0 else 0.0
        return self._absolute / self.count, self._persistent / self.count, skill, self._covered / self.count

    def _bounds(self) -> tuple[float, float]:
        tail = min(0.5, max(0.0, 0.5 * self._reach))
        last = len(self._sorted) - 1
        low, high = self._sorted[round(tail * last)], self._sorted[round((1 - tail) * last)]
        if self._reach <= 0.0:  # missed too often even so: beyond all errors seen
            more = 0.1 * (high - low) * (1 - self._reach / _STEP)
            low, high = low - more, high + more
        return min(low, 0.0), max(high, 0.0)

    def _learn(self, said: Said, actual: float) -> None:
        error, change = actual - said.value, actual - said.now
        missed = not said.low - 1e-9 <= actual <= said.high + 1e-9
        self.count += 1
        self._covered += not missed
        self._absolute += abs(error)
        self._persistent += abs(change)
        self._square += error * error
        self._persistent_square += change * change
        self._scale = max(1e-12, math.sqrt(0.99 * self._scale**2 + 0.01 * change * change))
        self._combine.update(said.features, change, noise=max(1e-12, self._noise * self._scale**2))
        self._reach += _STEP * (1 - self.confidence - missed)
        self._reach = min(1.0, max(-3 * _STEP, self._reach))
        if len(self._errors) == self._errors.maxlen:
            del self._sorted[bisect_left(self._sorted, self._errors[0])]
        self._errors.append(error)
        insort(self._sorted, error)
