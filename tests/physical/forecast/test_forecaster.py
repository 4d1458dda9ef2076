import math

import pytest

from loop.contracts.telemetry import Outlook, UnitReading
from physical.forecast import Forecaster
from physical.forecast.signals import signals


def _heating(second: int, **more: object) -> UnitReading:
    """A card that goes to 650 W at 300 s: 35 + 0.08 W, time constant 40 s; it throttles at 80 degrees."""
    power = 120.0 if second < 300 else 650.0
    warm = 35 + 0.08 * 120
    degrees = warm if second < 300 else warm + 0.08 * 530 * (1 - math.exp(-(second - 300) / 40.0))
    hot = degrees >= 80
    return UnitReading(
        "n/gpu0", float(second), temperature_c=round(degrees), power_w=power,
        throttle=("hw-thermal",) if hot else (), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def _crosses() -> float:
    return 300 - 40.0 * math.log(1 - (80 - 44.6) / (0.08 * 530))


@pytest.mark.slow
def test_throttling_is_announced_before_it_comes() -> None:
    forecaster, told = Forecaster(), {}
    for second in range(400):
        outlook = forecaster.observe([_heating(second, slowdown_c=80.0)])
        told[second] = outlook
    assert told[290].throttling[0].seconds is None
    crossing = _crosses()
    warned = [second for second, outlook in told.items() if outlook.throttling[0].seconds is not None]
    assert warned
    assert crossing - warned[0] > 5  # seconds of warning
    soon = told[int(crossing) - 10]
    assert soon.throttling[0].seconds == pytest.approx(10, abs=8)
    assert dict(soon.signals)["heat_ahead"] < -0.5
    assert dict(told[200].signals)["heat_ahead"] == 0.0


@pytest.mark.slow
def test_a_limit_that_nobody_told_is_learned() -> None:
    forecaster = Forecaster()
    outlook = Outlook(0.0, (), (), ())
    for second in range(400):
        outlook = forecaster.observe([_heating(second)])
        if second == 300:
            assert outlook.throttling[0].limit_c is None
            assert outlook.throttling[0].seconds is None
    (heat,) = outlook.throttling
    assert heat.learned
    assert heat.limit_c == pytest.approx(80, abs=2)
    assert {f.quantity for f in outlook.forecasts} == {"temperature_c", "throttling"}


def test_intervals_hold_their_values_and_bounds() -> None:
    forecaster = Forecaster()
    for second in range(150):
        outlook = forecaster.observe(
            [
                UnitReading(
                    "n/gpu0",
                    float(second),
                    queue=max(0.0, 20 - second / 5),
                    memory_used_bytes=5e8 * second,
                    memory_total_bytes=8e10,
                )
            ]
        )
        for forecast in outlook.forecasts:
            assert forecast.low <= forecast.value <= forecast.high
            assert forecast.low >= 0
            if forecast.quantity == "memory_bytes":
                assert forecast.high <= 8e10
    pressed = {f.horizon_s: f.value for f in outlook.forecasts if f.quantity == "memory_bytes"}
    assert pressed[30.0] > 7.8e10
    assert dict(outlook.signals)["memory_pressure_ahead"] < -0.7


def test_every_forecast_is_scored() -> None:
    forecaster = Forecaster(horizons_s=(1.0, 10.0))
    for second in range(200):
        forecaster.observe([_heating(second, slowdown_c=80.0, queue=float(second % 3))])
    scores = {(score.quantity, score.horizon_s): score for score in forecaster.scores()}
    assert set(scores) == {(q, h) for q in ("queue", "temperature_c", "throttling") for h in (1.0, 10.0)}
    assert scores["queue", 10.0].count == 190
    assert scores["throttling", 1.0].coverage is None
    assert scores["temperature_c", 10.0].mean_absolute_error < 0.5


def test_readings_that_come_faster_than_forecasts_are_left_out() -> None:
    forecaster = Forecaster()
    first = forecaster.observe([UnitReading("u", 1.0, queue=1.0)])
    again = forecaster.observe([UnitReading("u", 1.1, queue=50.0)])
    assert first.forecasts == again.forecasts


def test_units_that_vanish_are_not_forecast() -> None:
    forecaster = Forecaster()
    forecaster.observe([UnitReading("a", 1.0, queue=1.0), UnitReading("b", 1.0, queue=1.0)])
    outlook = forecaster.observe([UnitReading("a", 2.0, queue=1.0)])
    assert {f.unit for f in outlook.forecasts} == {"a"}
    assert forecaster.observe([]).forecasts == ()


def test_nothing_known_hurts_nothing() -> None:
    found = signals((), limits_c={}, memory_bytes={}, served_per_s={}, slo_wait_s=10.0)
    assert all(value == 0 for _, value in found)
    assert len(found) == 4


@pytest.mark.parametrize(
    "wrong", [{"horizons_s": ()}, {"horizons_s": (5.0, 1.0)}, {"confidence": 1.0}, {"horizons_s": (0.0,)}]
)
def test_bad_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Forecaster(**wrong)  # type: ignore[arg-type]
