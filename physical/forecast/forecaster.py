"""The forecaster: readings of all units go in once a second, an outlook comes out, and every forecast is scored.

forecaster = Forecaster()
outlook = forecaster.observe(readings)      # forecasts, time to throttle, signals
forecaster.scores()                         # skill against persistence, coverage
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from loop.contracts.telemetry import Forecast, ForecastScore, Outlook, TimeToThrottle, UnitReading
from physical.forecast.signals import signals
from physical.forecast.thermal import ThermalModel
from physical.forecast.track import Track
from physical.forecast.trend import Growth, QueueModel

HORIZONS_S = (1.0, 5.0, 15.0, 30.0, 60.0)
CONFIDENCE = 0.9
QUEUE, MEMORY, TEMPERATURE, THROTTLING = "queue", "memory_bytes", "temperature_c", "throttling"
_LEAST_STEP_S = 0.9
"""Readings that come faster are left out: a minute ahead needs no tenths of seconds."""
_THERMAL = frozenset({"sw-thermal", "hw-thermal", "hw-slowdown"})


class Forecaster:
    """Forecasts of every unit that is read. `slo_wait_s`: how long work may wait before queueing hurts."""

    def __init__(
        self,
        *,
        horizons_s: tuple[float, ...] = HORIZONS_S,
        confidence: float = CONFIDENCE,
        slo_wait_s: float = 10.0,
    ) -> None:
        if not horizons_s or min(horizons_s) <= 0 or list(horizons_s) != sorted(set(horizons_s)):
            raise ValueError(f"horizons_s must be above 0 and ascending, not {horizons_s}")
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
        self._horizons = horizons_s
        self._confidence = confidence
        self._slo_wait_s = slo_wait_s
        self._units: dict[str, Unit] = {}

    def observe(self, readings: Iterable[UnitReading]) -> Outlook:
        """Learn what is seen of the units now, and say what is expected. Units that are not read any more (lost) are
        not forecast either; what was learned of them stays.
        """
        seen: list[Unit] = []
        at_s = 0.0
        for reading in readings:
            unit = self._units.get(reading.unit)
            if unit is None:
                unit = self._units[reading.unit] = Unit(reading.unit, self._horizons, self._confidence)
            unit.observe(reading)
            at_s = max(at_s, reading.at_s)
            seen.append(unit)
        forecasts = tuple(forecast for unit in seen for forecast in unit.forecasts)
        throttling = tuple(unit.time_to_throttle() for unit in seen if unit.has_heat)
        limits = {entry.unit: entry.limit_c for entry in throttling if entry.limit_c is not None}
        return Outlook(
            at_s,
            forecasts,
            throttling,
            signals(
                forecasts,
                limits_c=limits,
                memory_bytes={unit.name: unit.memory_total_bytes for unit in seen},
                served_per_s={unit.name: unit.served_per_s for unit in seen},
                slo_wait_s=self._slo_wait_s,
            ),
        )

    def scores(self) -> tuple[ForecastScore, ...]:
        """How every forecast that has come due did, unit by unit."""
        return tuple(score for unit in self._units.values() for score in unit.scores())

    def unit(self, name: str) -> Unit:
        """One unit's models. Raises KeyError for one that was never read."""
        return self._units[name]


class Unit:
    """What is known and expected of one unit."""

    def __init__(self, name: str, horizons_s: tuple[float, ...], confidence: float) -> None:
        self.name = name
        self.heat = ThermalModel()
        self.forecasts: tuple[Forecast, ...] = ()
        self.memory_total_bytes: float | None = None
        self._horizons = horizons_s
        self._confidence = confidence
        self._queue = QueueModel()
        self._memory = Growth()
        self._tracks: dict[tuple[str, float], Track] = {}
        self._at_s: float | None = None
        self._told_limit_c: float | None = None
        self._seen_limit_c: float | None = None
        self._was_hot = False

    @property
    def has_heat(self) -> bool:
        """Does it tell its temperature?"""
        return self.heat.ready

    @property
    def served_per_s(self) -> float | None:
        """Work done while there was work; None: not known."""
        return self._queue.served_per_s

    @property
    def limit_c(self) -> float | None:
        """Where heat holds its clocks down: what was seen is believed before what is told."""
        return self._seen_limit_c if self._seen_limit_c is not None else self._told_limit_c

    def observe(self, reading: UnitReading) -> None:
        """Learn one reading, and forecast anew."""
        if self._at_s is not None and reading.at_s - self._at_s < _LEAST_STEP_S:
            return
        self._at_s = reading.at_s
        self.forecasts = (*self._of_queue(reading), *self._of_memory(reading), *self._of_heat(reading))

    def time_to_throttle(self) -> TimeToThrottle:
        """From the temperature's forecasts, straight between the horizons."""
        limit = self.limit_c
        ahead = [f for f in self.forecasts if f.quantity == TEMPERATURE]
        if limit is None or not ahead:
            return TimeToThrottle(self.name, None, None, limit, self._seen_limit_c is not None)
        now = self.heat.temperature_c
        expected = _crossing(limit, now, [(f.horizon_s, f.value) for f in ahead])
        soonest = _crossing(limit, now, [(f.horizon_s, f.high) for f in ahead])
        return TimeToThrottle(self.name, expected, soonest, limit, self._seen_limit_c is not None)

    def scores(self) -> Iterator[ForecastScore]:
        """Of all forecasts that came due."""
        for (quantity, horizon), track in self._tracks.items():
            if track.count:
                error, persistence, skill, coverage = track.scores
                told = None if quantity == THROTTLING else coverage
                yield ForecastScore(
                    self.name,
                    quantity,
                    horizon,
                    track.count,
                    error,
                    persistence,
                    skill,
                    told,
                    self._confidence,
                )

    def _of_queue(self, reading: UnitReading) -> Iterator[Forecast]:
        if reading.queue is None:
            return
        self._queue.observe(reading.at_s, reading.queue, reading.arrived, reading.served)
        for horizon in self._horizons:
            model = self._queue.after(horizon)
            yield self._forecast(
                QUEUE,
                reading,
                horizon,
                reading.queue,
                model,
                lowest=0.0,
                width=3.0 + 0.3 * horizon + reading.queue,
            )

    def _of_memory(self, reading: UnitReading) -> Iterator[Forecast]:
        used, total = reading.memory_used_bytes, reading.memory_total_bytes
        if used is None:
            return
        self.memory_total_bytes = total
        self._memory.observe(reading.at_s, used)
        for horizon in self._horizons:
            model = self._memory.after(horizon)
            width = (0.02 + 0.002 * horizon) * (total or used or 1.0)
            yield self._forecast(
                MEMORY, reading, horizon, used, model, lowest=0.0, highest=total, width=width
            )

    def _of_heat(self, reading: UnitReading) -> Iterator[Forecast]:
        temperature = reading.temperature_c
        if temperature is None:
            return
        before = self.heat.temperature_c if self.heat.ready else temperature
        # Without its power, a unit's temperature is only expected to stay.
        self.heat.observe(reading.at_s, reading.power_w or 0.0, temperature)
        self._told_limit_c = reading.slowdown_c
        hot = bool(_THERMAL & set(reading.throttle))
        if hot and not self._was_hot:
            # The clocks may have cooled it already when it is seen.
            reached, seen = max(before, temperature), self._seen_limit_c
            self._seen_limit_c = reached if seen is None else seen + 0.3 * (reached - seen)
        self._was_hot = hot
        for horizon in self._horizons:
            model = self.heat.after(horizon)
            width = 2.0 + min(13.0, 0.5 * horizon)
            said = self._forecast(TEMPERATURE, reading, horizon, temperature, model, width=width, weight=0.8)
            yield said
            if self.limit_c is not None:
                track = self._tracks[TEMPERATURE, horizon]
                chance = track.chance_above(said.value, self.limit_c)
                yield self._chance(reading, horizon, chance, hot=hot)

    def _forecast(
        self,
        quantity: str,
        reading: UnitReading,
        horizon: float,
        now: float,
        model: float,
        *,
        lowest: float = float("-inf"),
        highest: float | None = None,
        width: float,
        weight: float = 0.5,
    ) -> Forecast:
        track = self._tracks.get((quantity, horizon))
        if track is None:
            track = self._tracks[quantity, horizon] = Track(horizon, self._confidence, width, weight)
        track.came(reading.at_s, now)
        ceiling = float("inf") if highest is None else max(highest, now)
        value, low, high = track.say(reading.at_s, now, model, lowest, ceiling)
        return Forecast(self.name, quantity, reading.at_s, horizon, value, low, high, self._confidence)

    def _chance(self, reading: UnitReading, horizon: float, chance: float, *, hot: bool) -> Forecast:
        """A probability, scored by its squared error (Brier, 1950)."""
        said = self._forecast(
            THROTTLING, reading, horizon, float(hot), chance, lowest=0.0, highest=1.0, width=1.0
        )
        return Forecast(
            said.unit, THROTTLING, said.made_s, horizon, said.value, said.value, said.value, self._confidence
        )


def _crossing(limit: float, now: float, ahead: list[tuple[float, float]]) -> float | None:
    """When a line through these points first reaches the limit; None: it does not."""
    if now >= limit:
        return 0.0
    before_s, before = 0.0, now
    for at_s, value in ahead:
        if value >= limit:
            return (
                before_s + (at_s - before_s) * (limit - before) / (value - before) if value > before else at_s
            )
        before_s, before = at_s, value
    return None
