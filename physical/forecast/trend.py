"""Queue and memory: where they go if arrivals, service and growth go on as they do."""

from __future__ import annotations

from math import exp

from physical.forecast.persistence import Persistence

_LEVEL_LAG_S = 2.0
_TREND_LAG_S = 15.0
_RATE_LAG_S = 5.0
_SERVICE_LAG_S = 15.0
_DAMPING_S = 60.0
"""A trend is worth two thirds less after so long: none goes on for ever (Gardner and McKenzie, 1985)."""


class Growth:
    """A level and its damped trend, by exponential smoothing over uneven steps (Holt 1957; Wright 1986)."""

    def __init__(self) -> None:
        self._at_s: float | None = None
        self.level = 0.0
        self.per_s = 0.0

    def observe(self, at_s: float, value: float) -> None:
        """Learn one value. What is not later than the last is left out."""
        if self._at_s is None:
            self._at_s, self.level = at_s, value
            return
        step_s = at_s - self._at_s
        if step_s <= 0:
            return
        self._at_s = at_s
        expected = self.level + self.per_s * step_s
        before = self.level
        self.level = expected + (1 - exp(-step_s / _LEVEL_LAG_S)) * (value - expected)
        self.per_s += (1 - exp(-step_s / _TREND_LAG_S)) * ((self.level - before) / step_s - self.per_s)

    def after(self, horizon_s: float) -> float:
        """The value `horizon_s` ahead."""
        return self.level + self.per_s * _DAMPING_S * (1 - exp(-horizon_s / _DAMPING_S))


class QueueModel:
    """Arrivals against service. With counters of both the queue is a fluid: it grows by what arrives, whose rate returns to
    its mean as it is used to, and shrinks by what was served lately while there was work. Without them it has a trend of
    its own.
    """

    def __init__(self) -> None:
        self._own = Growth()
        self._arrivals = _Rate()
        self._arriving = Persistence(_RATE_LAG_S)
        self._service = _Rate()
        self._queue = 0.0

    @property
    def served_per_s(self) -> float | None:
        """While there was work; None: not known."""
        return self._service.per_s if self._service.known else None

    def observe(self, at_s: float, queue: float, arrived: float | None, served: float | None) -> None:
        """Learn one look."""
        busy = self._queue > 0
        self._queue = queue
        self._own.observe(at_s, queue)
        if arrived is not None and (rate := self._arrivals.observe(at_s, arrived, learn=True)) is not None:
            self._arriving.observe(at_s, rate)
        if served is not None:
            self._service.observe(at_s, served, learn=busy and queue > 0)

    def after(self, horizon_s: float) -> float:
        """The queue `horizon_s` ahead; never below 0."""
        if not (self._arrivals.known and self._service.known):
            return max(0.0, self._own.after(horizon_s))
        ahead = self._arriving.mean_over(horizon_s)
        return max(0.0, self._queue + (ahead - self._service.per_s) * horizon_s)


class _Rate:
    """A counter's growth per second, smoothed."""

    def __init__(self) -> None:
        self._then: tuple[float, float] | None = None
        self.per_s = 0.0
        self.known = False

    def observe(self, at_s: float, count: float, *, learn: bool) -> float | None:
        """The rate since the last look; None where there is none (a first look, a counter that began anew)."""
        then, self._then = self._then, (at_s, count)
        if then is None or at_s <= then[0] or count < then[1]:
            return None
        step_s = at_s - then[0]
        rate = (count - then[1]) / step_s
        if learn:
            share = 1 - exp(-step_s / _SERVICE_LAG_S) if self.known else 1.0
            self.per_s += share * (rate - self.per_s)
            self.known = True
        return rate
