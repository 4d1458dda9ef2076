"""The baselines on a real cluster of the package, with the estimates of the performance model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from hw_profiles import load_cluster, load_model
from hw_profiles.performance import PerformanceModel
from loop.contracts import Memo, Observation
from physical.placement import deployment_options, device_views
from strategy.baselines import BASELINES, load_baseline
from strategy.policy_api import loads, plan_serving_s
from tests.strategy import builders as b
from tests.strategy.conformance import infeasibilities

MODEL = "llama-3.1-70b"


@cache
def mixed_64() -> Observation:
    topology = load_cluster("mixed-64")
    options = deployment_options(topology, [load_model(MODEL)], PerformanceModel.load())
    obs = b.observation((), (MODEL,), [b.busy(MODEL, 1600, 1150.0, 210.0)])
    return replace(obs, devices=device_views(topology), options=options)


@pytest.mark.parametrize("name", BASELINES)
def test_fills_the_cluster_with_feasible_replicas(name: str) -> None:
    obs = mixed_64()
    plan = load_baseline(name).plan(obs, 2.0, Memo())
    assert infeasibilities(plan, obs) == []
    assert sum(len(s.devices) for s in plan.replicas) == 64, "the small nodes join through pipelines"


def test_the_exact_layout_is_no_worse_than_the_greedy_one() -> None:
    obs = mixed_64()
    exact, greedy = (load_baseline(n).plan(obs, 2.0, Memo()) for n in ("milp_replan", "least_loaded"))
    assert plan_serving_s(obs, exact.replicas, loads(obs)) <= 1.001 * plan_serving_s(
        obs, greedy.replicas, loads(obs)
    )
