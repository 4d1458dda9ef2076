from __future__ import annotations

from dataclasses import replace

import pytest

from loop.contracts import (
    EMPTY_PLAN,
    Backlog,
    Finish,
    PlaneSnapshot,
    ReplayMode,
    Request,
    RequestRecord,
    Resources,
    Slo,
)
from loop.perception import Perception
from tests.loop.builders import device, option, replica_view

DEVICES = (device("n0/gpu0"), device("n0/gpu1"))


def perception() -> Perception:
    return Perception(("m",), (option(),), slo=Slo(1.0, 0.1), mode=ReplayMode.BATCH, window_s=60.0)


def snapshot(**changes: object) -> PlaneSnapshot:
    base = PlaneSnapshot(5.0, EMPTY_PLAN, DEVICES, (), (), Resources(), 0.0, 0.0)
    return replace(base, **changes)  # type: ignore[arg-type]


def record(ttft_s: float, tokens: int = 11) -> RequestRecord:
    return RequestRecord(1, "m", Finish.OK, 0.0, 0.0, 0.0, ttft_s, ttft_s + 0.5, 100, tokens, 25, 0, 0, 0)


def test_released_requests_are_backlog_and_the_last_window_is_demand() -> None:
    p = perception()
    requests = [Request(i, 0.0, "m", 200, 10) for i in range(4)]
    first = p.observe(snapshot(), tick=0, released=requests)
    assert first.demand[0].waiting == 4
    assert first.demand[0].waiting_input_tokens == 800
    assert first.demand[0].finished == 0
    p.arrived(requests)
    for _ in requests:
        p(record(0.5))
    p.end_window(10.0)
    second = p.observe(snapshot(backlog=(Backlog("m", 3, 30, 1),)), tick=1)
    assert second.demand[0].finished == 4
    assert second.demand[0].rate_per_s == pytest.approx(0.4)
    assert second.demand[0].prefix_hit == pytest.approx(0.25)
    assert (second.demand[0].waiting, second.demand[0].running) == (3, 1)
    assert second.history == ()
    p.end_window(10.0)
    assert p.observe(snapshot(), tick=2).history[0][0].finished == 4


def test_pain_is_the_worst_signal_and_slo_misses_hurt() -> None:
    p = perception()
    p(record(0.5))
    p(record(3.0))
    p.end_window(10.0)
    obs = p.observe(snapshot(), tick=1)
    signals = dict(obs.signals)
    assert signals["slo_misses"] == pytest.approx(-0.5)
    assert signals["queueing"] == pytest.approx(-2 / 3, rel=0.05)
    assert obs.pain == pytest.approx(-min(signals.values()))
    assert all(-1 <= value <= 1 for value in signals.values())


def test_throttling_and_full_memory_hurt() -> None:
    slow = (device("n0/gpu0", speed=0.4), device("n0/gpu1", available=False))
    full = (replica_view(kv_tokens=99_000),)
    signals = dict(perception().observe(snapshot(devices=slow, replicas=full), tick=0).signals)
    assert signals["throttling"] == pytest.approx(-0.6)
    assert signals["lost_capacity"] == pytest.approx(-0.5)
    assert signals["memory_pressure"] == pytest.approx(-0.9)


def test_changes_are_told_once_and_by_node() -> None:
    p = perception()
    assert p.observe(snapshot(), tick=0).changes == ()
    down = tuple(replace(d, available=False) for d in DEVICES)
    assert p.observe(snapshot(devices=down), tick=1).changes == ("down:n0",)
    assert p.observe(snapshot(devices=down), tick=2).changes == ()
    leaving = tuple(replace(d, leaving_in_s=9.0) for d in DEVICES)
    assert p.observe(snapshot(devices=leaving), tick=3).changes == ("up:n0", "leaving:n0")


def test_a_primed_perception_sees_what_the_original_saw() -> None:
    original = perception()
    before = original.observe(snapshot(), tick=0)
    original(record(0.5))
    original.end_window(10.0)
    down = tuple(replace(d, available=False) for d in DEVICES)
    seen = original.observe(snapshot(devices=down), tick=1)
    copy = perception()
    copy.prime(seen, before)
    again = copy.observe(snapshot(devices=down), tick=1)
    assert again == seen
