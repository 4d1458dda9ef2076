from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from execution.workload import (
    SCENARIOS,
    WorkloadError,
    node_loss,
    scenario,
    spot_churn,
    spot_preemption,
    stragglers,
    throttle,
    windows,
)
from loop.contracts import EventKind, Workload
from tests.execution.workload.strategies import well_formed


def made(name: str, data_dir: Path | None = None, seed: int = 1) -> tuple[Workload, tuple[object, ...]]:
    return scenario(
        name,
        data_dir,
        model="a",
        other_model="b",
        seed=seed,
        duration_s=400.0,
        rate_scale=0.5,
        nodes=("n0", "n1"),
        spot=("s0", "s1", "s2"),
    )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n.startswith("diurnal") else []) for n in SCENARIOS]
)
def test_scenarios_are_well_formed_repeatable_and_last_as_long_as_asked(name: str) -> None:
    workload, events = made(name)
    well_formed(workload)
    assert (workload, events) == made(name)
    assert made(name, seed=2)[0].requests != workload.requests
    assert workload.name == name
    assert workload.generated
    assert 390.0 < workload.requests[-1].arrival_s <= 400.0
    assert list(events) == sorted(events, key=lambda e: e.at_s)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_azure_volatile_shifts_bursts_and_loses_a_node() -> None:
    workload, events = scenario("azure-volatile", model="m", nodes=("n7",), duration_s=3500.0)
    times = np.array([r.arrival_s for r in workload.requests])
    inputs = np.array([r.input_tokens for r in workload.requests])

    def rate(low: float, high: float) -> float:
        return float(((times >= low * 3500) & (times < high * 3500)).sum() / ((high - low) * 3500))

    assert rate(0.55, 0.65) > 1.6 * rate(0.45, 0.55)
    shifted = inputs[(times > 0.45 * 3500) & (times < 0.85 * 3500)]
    assert np.mean(shifted) > 3.0 * np.mean(inputs[times < 0.3 * 3500])
    assert [(e.kind, e.target) for e in events] == [(EventKind.DOWN, "n7"), (EventKind.UP, "n7")]
    assert scenario("azure-volatile", model="m", duration_s=100.0)[1] == ()


def test_a_trace_in_the_data_directory_is_used_and_repeated(azure_csv: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "azure").mkdir(parents=True)
    shutil.copy(azure_csv, tmp_path / "data" / "azure")
    workload, _ = scenario("spot", tmp_path / "data", model="m", duration_s=200.0)
    assert not workload.generated
    assert workload.source.endswith("AzureLLMInferenceTrace_conv_2023.csv")
    assert [r.input_tokens for r in workload.requests] == [374, 396, 879] * 3 + [374]


def test_model_mix_moves_the_models() -> None:
    workload, _ = made("model-mix")
    half = len(workload.requests) // 4
    first = [r.model for r in workload.requests[:half]]
    last = [r.model for r in workload.requests[-half:]]
    assert first.count("a") > 0.7 * half
    assert last.count("b") > 0.6 * half


def test_scenarios_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(WorkloadError, match="no scenario 'x'; known: azure-volatile"):
        scenario("x", model="m")
    with pytest.raises(WorkloadError, match="needs other_model"):
        scenario("model-mix", model="m")
    with pytest.raises(WorkloadError, match="cannot generate"):
        scenario("spot", model="m", duration_s=-1.0)


def test_churn_alternates_between_reclaim_and_return() -> None:
    events = spot_churn(["a", "b"], 5000.0, mean_up_s=400.0, mean_down_s=200.0, notice_s=30.0, seed=3)
    assert len(events) > 10
    for target in ("a", "b"):
        own = [e for e in events if e.target == target]
        assert [e.kind for e in own] == ([EventKind.PREEMPT, EventKind.UP] * len(own))[: len(own)]
        for gone, back in zip(own[::2], own[1::2], strict=False):
            assert back.at_s >= gone.at_s + gone.notice_s
    assert all(e.at_s < 5000.0 for e in events)


def test_stragglers_slow_down_and_heal() -> None:
    events = stragglers(["a"], 9000.0, mean_between_s=300.0, mean_length_s=60.0, seed=1)
    slow = events[::2]
    healed = events[1::2]
    assert len(slow) > 5
    assert all(0.3 <= e.factor <= 0.8 for e in slow)
    assert all(e.factor == 1.0 for e in healed)
    assert all(e.kind is EventKind.SPEED for e in events)


def test_events_fall_into_their_windows(steady: Workload) -> None:
    events = (*node_loss("n0", 100.0, back_at_s=250.0), *throttle("n1", 299.9, 0.5, heals_at_s=300.0))
    kinds = [[e.kind for e in window.events] for window in windows(steady, 100.0, events)]
    assert kinds[:4] == [[], [EventKind.DOWN], [EventKind.UP, EventKind.SPEED], [EventKind.SPEED]]


def test_senseless_events_are_refused() -> None:
    with pytest.raises(WorkloadError, match="n: event at -1 s"):
        node_loss("n", -1.0)
    with pytest.raises(WorkloadError, match="in order"):
        node_loss("n", 5.0, back_at_s=5.0)
    with pytest.raises(WorkloadError, match="too early"):
        spot_preemption("n", 5.0, notice_s=10.0, back_at_s=6.0)
    with pytest.raises(WorkloadError, match="speed factor 0"):
        throttle("n", 5.0, 0.0)
    with pytest.raises(WorkloadError, match="mean_up_s is 0"):
        spot_churn(["n"], 5.0, mean_up_s=0.0, mean_down_s=1.0)
    with pytest.raises(WorkloadError, match="must ascend"):
        stragglers(["n"], 5.0, mean_between_s=1.0, mean_length_s=1.0, slowest=0.9)
