"""What the next window will ask for: forecasts from the history that an observation carries."""

from __future__ import annotations

from collections.abc import Sequence

from loop.contracts.observation import Observation
from loop.contracts.workload import ReplayMode
from strategy.estimates import Load, loads


def holt(values: Sequence[float], level_weight: float = 0.5, trend_weight: float = 0.3) -> float:
    """The next value by double exponential smoothing (Holt 1957), never below 0; 0 without any value.

    `level_weight` and `trend_weight`, 0 to 1, are the shares of the newest value in level and trend.
    """
    if not values:
        return 0.0
    level, trend = values[0], 0.0
    for value in values[1:]:
        before = level
        level = level_weight * value + (1.0 - level_weight) * (level + trend)
        trend = trend_weight * (level - before) + (1.0 - trend_weight) * trend
    return max(0.0, level + trend)


def past_values(obs: Observation, model: str, field: str) -> list[float]:
    """A field of `Demand` in all windows seen in which the model was asked for, oldest first, e.g. `arrived`."""
    windows = (*obs.history, obs.demand)
    return [
        float(getattr(d, field)) for window in windows for d in window if d.model == model and d.arrived > 0
    ]


def expected_loads(
    obs: Observation, level_weight: float = 0.5, trend_weight: float = 0.3
) -> tuple[Load, ...]:
    """The load of each model as `loads` gives it, with what is not known yet forecast by `holt`: lengths of
    answers, and online the requests of the next window. What was released already is known, and counts as it
    is.
    """
    return tuple(_expected(obs, load, level_weight, trend_weight) for load in loads(obs))


def _expected(obs: Observation, load: Load, level: float, trend: float) -> Load:
    outputs = holt(past_values(obs, load.model, "output_tokens_mean"), level, trend)
    p90 = holt(past_values(obs, load.model, "output_tokens_p90"), level, trend)
    if outputs <= 0.0:
        return load
    load = load._replace(output_tokens=max(1.0, outputs), output_tokens_p90=max(1.0, outputs, p90))
    if obs.mode is ReplayMode.BATCH:
        return load
    now = next(d for d in obs.demand if d.model == load.model)
    inputs = holt(past_values(obs, load.model, "input_tokens_mean"), level, trend)
    arriving = holt(past_values(obs, load.model, "arrived"), level, trend)
    return load._replace(
        requests=now.waiting + now.running + arriving, input_tokens=max(1.0, inputs or load.input_tokens)
    )
