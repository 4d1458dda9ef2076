import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.contracts.telemetry import EventKind, TelemetryEvent
from physical.telemetry.render import describe, sparkline
from physical.telemetry.store import GPU_COLUMNS, NAN, EventLog, Ring, gpu_sample
from physical.telemetry.windows import as_dict, from_dict, summarise


@given(st.integers(1, 9), st.integers(0, 40), st.floats(-1, 50))
def test_a_ring_keeps_the_last_rows(capacity: int, count: int, began_s: float) -> None:
    ring = Ring(("a", "b"), capacity)
    written = [(float(i), [i * 2.0, NAN]) for i in range(count)]
    for at_s, row in written:
        ring.append(at_s, row)
    kept = written[-capacity:]
    times, rows = ring.between(began_s)
    assert list(times) == [at_s for at_s, _ in kept if at_s > began_s]
    assert list(rows[:, 0]) == [row[0] for at_s, row in kept if at_s > began_s]
    assert len(ring) == len(kept)
    last = ring.last()
    assert (last is None) == (not kept)
    if last is not None:
        assert last[0] == kept[-1][0]
        assert math.isnan(last[1][1])


def test_what_is_read_does_not_change_when_the_ring_goes_on() -> None:
    ring = Ring(("a",), 2)
    ring.append(1.0, [10.0])
    times, rows = ring.between()
    ring.append(2.0, [20.0])
    ring.append(3.0, [30.0])
    assert (times[0], rows[0, 0]) == (1.0, 10.0)
    assert list(ring.column("a")) == [20.0, 30.0]


def test_events_are_numbered_and_cut_by_time() -> None:
    log = EventLog()
    for at_s in (1.0, 2.0, 3.0):
        log.add(EventKind.LOST, "d", at_s)
    assert [entry.number for entry in log.since(1)] == [2, 3]
    assert [event.at_s for event in log.between(1.0, 2.0)] == [2.0]


def _ring(columns: tuple[str, ...], rows: list[list[float]]) -> Ring:
    ring = Ring(columns, 100)
    for index, row in enumerate(rows):
        ring.append(float(index), row)
    return ring


def test_a_window_holds_quantiles_throttling_and_events() -> None:
    rows = [[float(i), 4.0 if i < 5 else 0.0, NAN] for i in range(20)]
    event = TelemetryEvent(EventKind.THROTTLING, "n/gpu0", 3.0, "power-cap", 4.0)
    ring = _ring(("power_w", "throttle", "temperature_c"), rows)
    empty = Ring(("power_w",), 4)
    window = summarise([("n/gpu0", ring), ("n/gpu1", empty)], (event,), -1.0, 19.0, 0.1)
    (device,) = window.devices
    assert (device.samples, device.throttled_share, device.throttle_reasons) == (20, 0.25, ("power-cap",))
    ((name, spread),) = device.figures
    assert name == "power_w"
    powers = np.arange(20.0)
    assert spread.p90 == pytest.approx(np.quantile(powers, 0.9))
    assert spread.p99 == pytest.approx(np.quantile(powers, 0.99))
    assert (spread.mean, spread.minimum, spread.maximum, spread.p50) == (9.5, 0.0, 19.0, 9.5)
    assert from_dict(json.loads(json.dumps(as_dict(window)))) == window


def test_a_window_that_is_none_is_refused() -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_dict({"devices": [{}], "events": []})


def test_what_is_not_told_is_none_and_not_zero() -> None:
    sample = gpu_sample("n/gpu0", 1.0, [NAN] * len(GPU_COLUMNS))
    assert sample.power_w is None
    assert sample.mig is None
    assert sample.throttle == ()


def test_sparkline_and_description() -> None:
    assert sparkline([0.0, 0.5, 1.0, NAN, 9.0, -3.0], 0.0, 1.0) == "▁▅█ █▁"
    assert describe(TelemetryEvent(EventKind.ECC_CORRECTED, "local-0/gpu1", 0.0, "3 in all")) == (
        "gpu1 ecc corrected: 3 in all"
    )
