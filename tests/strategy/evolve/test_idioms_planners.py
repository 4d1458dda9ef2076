from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from loop.contracts import Observation, Plan, ReplayMode, Role
from loop.guard import plan_problems
from strategy.policy_api import Memo, fill, keep, loads, plan_makespan_s, reconfiguration_s
from tests.strategy.builders import busy, observation, serving
from tests.strategy.evolve.idiom_policies import planned, policy_with


def devices_of(plan: Plan) -> set[str]:
    return {device for spec in plan.replicas for device in spec.devices}


def serving_fill(obs: Observation, requests: int, model: str = "tiny") -> Observation:
    """The cluster as it serves with a layout made for another load."""
    past = replace(obs, demand=(busy(model, requests),))
    return serving(obs, Plan(fill(past, loads(past), (), concurrency=0.1)))


def makespan_s(obs: Observation, plan: Plan) -> float:
    assert plan_problems(plan, obs) == []
    return plan_makespan_s(obs, plan.replicas, loads(obs))


def with_speed(obs: Observation, ids: Sequence[str], speed: float) -> Observation:
    return replace(obs, devices=tuple(replace(d, speed=speed if d.id in ids else 1.0) for d in obs.devices))


def test_keep_and_fill_stops_nothing_and_fresh_layout_keeps_nothing() -> None:
    obs = serving_fill(observation(demands=[busy("tiny", 9000)]), 10)
    kept = planned("keep_and_fill", obs)
    assert {s.key for s in obs.plan.replicas} <= {s.key for s in kept.replicas}
    fresh = planned("fresh_layout", obs)
    assert fresh.replicas == planned("fresh_layout", observation(demands=[busy("tiny", 9000)])).replicas


@pytest.mark.parametrize(
    "name", ["layout_search", "node_search", "portfolio", "fast_kinds_first", "minimal_move"]
)
def test_searches_end_no_later_than_filling_does(name: str) -> None:
    for demand in (busy("tiny", 40, outputs=900.0), busy("tiny", 9000, inputs=300.0)):
        obs = serving_fill(observation(demands=[demand]), 10)
        before = Plan(fill(obs, loads(obs), keep(obs)))
        found = planned(name, obs, COST_WEIGHT=0.2, HORIZON_WINDOWS=20.0)
        assert makespan_s(obs, found) <= 1.02 * makespan_s(obs, before)


@pytest.mark.parametrize(
    "name", ["layout_search", "node_search", "minimal_move", "portfolio", "local_search"]
)
def test_searches_leave_a_layout_alone_when_stalls_are_dear(name: str) -> None:
    obs = serving_fill(observation(demands=[busy("tiny", 50)]), 2000)
    found = planned(name, obs, COST_WEIGHT=5.0, HORIZON_WINDOWS=0.5)
    assert reconfiguration_s(obs, found) == 0.0


def test_node_search_looks_at_no_more_layouts_than_it_may() -> None:
    obs = observation(models=("tiny", "large"), demands=[busy("tiny", 900), busy("large", 900)])
    few, many = (planned("node_search", obs, MAX_STEPS=steps) for steps in (20, 1000))
    assert int(few.reason.split()[2]) < 20 + len(obs.options)
    assert makespan_s(obs, many) <= makespan_s(obs, few)


def test_minimal_move_changes_no_more_nodes_than_it_may() -> None:
    obs = serving_fill(observation((("big", 8),) * 6, demands=[busy("tiny", 20000)]), 5)
    one = planned("minimal_move", obs, MAX_MOVES=1, COST_WEIGHT=0.2, HORIZON_WINDOWS=20.0)
    changed = {d.split("/")[0] for s in set(one.replicas) - set(obs.plan.replicas) for d in s.devices}
    assert len(changed) <= 1


def test_leave_slow_out_uses_the_fast_kinds_only() -> None:
    obs = observation(demands=[busy("tiny", 500)])
    kinds = {d.id: d.kind for d in obs.devices}
    used = [{kinds[d] for d in devices_of(planned("leave_slow_out", obs, SLOWEST_STEP=s))} for s in (1.5, 20)]
    assert used == [{"big", "mid"}, {"big", "mid", "small"}]


def test_knapsack_splits_a_node_without_rest() -> None:
    obs = observation((("big", 7), ("mid", 5)), models=("large",), demands=[busy("large", 800)])
    found = planned("knapsack", obs)
    assert plan_problems(found, obs) == []
    best = max(sum(len(s.devices) for s in found.replicas), 0)
    assert best >= sum(len(s.devices) for s in fill(obs, loads(obs)))


def test_forecast_load_fits_the_window_that_comes() -> None:
    models = ("tiny", "large")
    past = tuple(
        (busy("tiny", 900, outputs=100.0), busy("large", 900, outputs=float(o))) for o in (100, 300, 500, 700)
    )
    obs = observation(
        models=models, demands=[busy("tiny", 900, outputs=100.0), busy("large", 900, outputs=900.0)]
    )
    steady, rising = (planned("forecast_load", o) for o in (obs, replace(obs, history=past)))
    share = [sum(len(s.devices) for s in p.replicas if s.model == "large") for p in (steady, rising)]
    assert share[1] >= share[0] > 0
    assert plan_problems(rising, obs) == []


def test_averaged_load_is_less_moved_by_one_window() -> None:
    models = ("tiny", "large")
    calm = (busy("tiny", 900), busy("large", 900))
    burst = observation(models=models, demands=[busy("tiny", 90_000), busy("large", 900)])
    burst = replace(burst, history=(calm,) * 6)
    shares = []
    for past_weight in (0.95, 0.05):
        found = planned("averaged_load", burst, PAST_WEIGHT=past_weight)
        shares.append(sum(len(s.devices) for s in found.replicas if s.model == "tiny"))
    assert shares[0] < shares[1]


def test_split_roles_only_when_prompts_are_most_of_the_work() -> None:
    long_prompts = observation(demands=[busy("tiny", 500, inputs=8000.0, outputs=20.0)])
    long_answers = observation(demands=[busy("tiny", 500, inputs=100.0, outputs=900.0)])
    assert {s.role for s in planned("split_roles", long_prompts).replicas} == {Role.PREFILL, Role.DECODE}
    assert {s.role for s in planned("split_roles", long_answers).replicas} == {Role.MIXED}
    assert plan_problems(planned("split_roles", long_prompts), long_prompts) == []


def test_groups_are_large_for_small_loads_and_layouts_stay_while_these_do() -> None:
    few, many = (observation(demands=[busy("tiny", n)]) for n in (10, 50000))
    sizes = [
        max(len(s.devices) for s in planned("group_size_by_load", o, LOAD_POWER=2.0).replicas)
        for o in (few, many)
    ]
    assert sizes[0] > sizes[1]
    policy, memo = policy_with("group_size_by_load"), Memo()
    first = policy.plan(few, 1.0, memo)
    assert policy.plan(serving(few, first), 1.0, memo).replicas == first.replicas


def test_speed_aware_leaves_a_throttled_device_out_when_that_helps() -> None:
    obs = observation((("big", 8),) * 2, demands=[busy("tiny", 3000)])
    obs = serving(obs, planned("speed_aware", obs))
    slow = with_speed(obs, ["n00/0"], 0.05)
    assert "n00/0" not in devices_of(planned("speed_aware", slow))
    a_little = with_speed(obs, ["n00/0"], 0.95)
    assert "n00/0" in devices_of(planned("speed_aware", a_little))


def test_balance_models_moves_devices_to_the_model_that_ends_last() -> None:
    models = ("tiny", "large")
    first = observation(models=models, demands=[busy("tiny", 9000), busy("large", 20)])
    now = observation(models=models, demands=[busy("tiny", 50), busy("large", 3000, outputs=500.0)])
    obs = serving(now, Plan(fill(first, loads(first))))
    found = planned("balance_models", obs)
    assert makespan_s(obs, found) < 0.7 * makespan_s(obs, obs.plan)
    assert {s.model for s in found.replicas} == set(models)


def test_headroom_gives_devices_back_online_and_uses_all_in_batch() -> None:
    quiet = observation(demands=[busy("tiny", 20)], mode=ReplayMode.ONLINE)
    rush = observation(demands=[busy("tiny", 300_000)], mode=ReplayMode.ONLINE)
    small, large = planned("headroom", quiet), planned("headroom", rush)
    assert 0 < len(devices_of(small)) < len(devices_of(large))
    calm_again = planned("headroom", serving(quiet, large))
    assert len(devices_of(calm_again)) < len(devices_of(large))
    batch = replace(quiet, mode=ReplayMode.BATCH)
    assert len(devices_of(planned("headroom", batch))) == len(batch.devices)


def test_batch_limits_follow_the_mix() -> None:
    prompts = planned("batch_limits", observation(demands=[busy("tiny", 500, inputs=8000.0, outputs=50.0)]))
    answers = planned("batch_limits", observation(demands=[busy("tiny", 500, inputs=200.0, outputs=800.0)]))
    chunk = [{s.max_num_batched_tokens for s in p.replicas} for p in (prompts, answers)]
    assert min(chunk[0]) > max(chunk[1]) >= 512


def test_leaving_last_uses_devices_that_leave_late_only() -> None:
    obs = observation((("big", 4),) * 2, demands=[busy("tiny", 3000)])
    for leaving_in_s, used in ((20.0, False), (2000.0, True)):
        spot = tuple(replace(d, leaving_in_s=leaving_in_s if d.node == "n01" else None) for d in obs.devices)
        found = planned("leaving_last", replace(obs, devices=spot))
        assert any(d.startswith("n01") for d in devices_of(found)) is used
