"""How long something keeps its value before it returns to its mean: a unit's power, the rate of arrivals."""

from __future__ import annotations

from collections import deque
from math import exp, log

_NEAR_S, _FAR_S = 5.0, 20.0
"""Two distances at which the autocorrelation is taken: noise, which has none, drops out of their ratio."""
_MEMORY_S = 600.0
_LONGEST_S, _SHORTEST_S, _FIRST_S = 600.0, 5.0, 120.0


class Persistence:
    """Mean, value of now (smoothed over `lag_s`), and the time constant of the return to the mean: a first-order
    autoregression seen through noise, its moments forgotten over ten minutes.
    """

    def __init__(self, lag_s: float) -> None:
        self._lag_s = lag_s
        self._at_s: float | None = None
        self._seen: deque[tuple[float, float]] = deque()
        self.mean = self.now = 0.0
        # Begun as if it kept its value for minutes.
        self._near, self._far = exp(-_NEAR_S / _FIRST_S), exp(-_FAR_S / _FIRST_S)

    @property
    def time_constant_s(self) -> float:
        """How fast it returns to its mean."""
        if self._near <= 0 or self._far <= 0:
            return _SHORTEST_S
        ratio = min(0.999, self._far / self._near)
        return min(_LONGEST_S, max(_SHORTEST_S, -(_FAR_S - _NEAR_S) / log(ratio)))

    def observe(self, at_s: float, value: float) -> None:
        """Learn the value of now. What is not later than the last is left out."""
        if self._at_s is None:
            self._at_s, self.mean, self.now = at_s, value, value
            self._near *= max(1.0, value * value)
            self._far *= max(1.0, value * value)
            return
        step_s = at_s - self._at_s
        if step_s <= 0:
            return
        self._at_s = at_s
        share = 1 - exp(-step_s / _MEMORY_S)
        self.mean += share * (value - self.mean)
        self.now += (1 - exp(-step_s / self._lag_s)) * (value - self.now)
        self._seen.append((at_s, value))
        while len(self._seen) > 1 and self._seen[1][0] <= at_s - _FAR_S:
            self._seen.popleft()
        away = value - self.mean
        far = self._seen[0]
        if at_s - far[0] >= 0.9 * _FAR_S:
            near = next(pair for pair in reversed(self._seen) if pair[0] <= at_s - 0.9 * _NEAR_S)
            self._near += share * (away * (near[1] - self.mean) - self._near)
            self._far += share * (away * (far[1] - self.mean) - self._far)

    def mean_over(self, horizon_s: float) -> float:
        """The expected mean over the next `horizon_s`."""
        back_s = self.time_constant_s
        return self.mean + (self.now - self.mean) * back_s / horizon_s * (1 - exp(-horizon_s / back_s))

    def lagged(self, lagged: float, tau_s: float, horizon_s: float) -> float:
        """A first-order lag of it, `lagged` now, in `horizon_s`: the solution of the two lags in a row."""
        back_s = self.time_constant_s
        if abs(back_s - tau_s) < 1e-3 * tau_s:
            back_s *= 1.01
        fading = exp(-horizon_s / tau_s)
        forced = (self.now - self.mean) * back_s / (back_s - tau_s) * (exp(-horizon_s / back_s) - fading)
        return self.mean + (lagged - self.mean) * fading + forced
