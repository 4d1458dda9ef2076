"""Forecasts as signals: named, signed and bounded like those of perception, so that pain can be felt before it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loop.contracts.telemetry import Forecast

LEAD_S = 30.0
"""Signals look at the longest horizon up to here."""
_PRESSED = 0.9
"""Memory hurts from this share on, as in loop.perception."""
_WARM_C = 10.0
"""Heat begins to hurt so far below the limit."""


def signals(
    forecasts: Sequence[Forecast],
    *,
    limits_c: Mapping[str, float],
    memory_bytes: Mapping[str, float | None],
    served_per_s: Mapping[str, float | None],
    slo_wait_s: float,
) -> tuple[tuple[str, float], ...]:
    """The worst of all units, each in [-1, 0]:

    `throttling_ahead` the probability that heat holds clocks down; `heat_ahead` how far a unit has come through the last
    ten degrees; `memory_pressure_ahead` through the last tenth of its memory; `queueing_ahead` by how much the
    wait exceeds `slo_wait_s`. What is not known does not hurt.
    """
    worst = dict.fromkeys(("throttling_ahead", "heat_ahead", "memory_pressure_ahead", "queueing_ahead"), 0.0)
    for forecast in _latest(forecasts):
        unit = forecast.unit
        name, pain = "", 0.0
        if forecast.quantity == "throttling":
            name, pain = "throttling_ahead", forecast.value
        elif forecast.quantity == "temperature_c" and unit in limits_c:
            name, pain = "heat_ahead", 1 - (limits_c[unit] - forecast.value) / _WARM_C
        elif forecast.quantity == "memory_bytes" and (total := memory_bytes.get(unit)):
            name, pain = "memory_pressure_ahead", (forecast.value / total - _PRESSED) / (1 - _PRESSED)
        elif forecast.quantity == "queue" and (rate := served_per_s.get(unit)):
            wait_s = forecast.value / rate
            name, pain = "queueing_ahead", 1 - slo_wait_s / wait_s if wait_s > slo_wait_s else 0.0
        if name:
            worst[name] = min(worst[name], -min(1.0, max(0.0, pain)))
    return tuple(worst.items())


def _latest(forecasts: Sequence[Forecast]) -> list[Forecast]:
    """Of each unit and quantity, the forecast furthest ahead that is within `LEAD_S` (the shortest, if none is)."""
    chosen: dict[tuple[str, str], Forecast] = {}
    for forecast in forecasts:
        key = forecast.unit, forecast.quantity
        if key not in chosen or forecast.horizon_s <= LEAD_S:
            chosen[key] = forecast
    return list(chosen.values())
