from __future__ import annotations

from dataclasses import replace

from loop.contracts import Observation
from strategy.baselines import load_baseline
from strategy.policy_api import Memo
from tests.strategy.builders import busy, observation, serving
from tests.strategy.evolve.idiom_policies import triggers


def running(requests: int = 500, **changes: object) -> Observation:
    """A cluster that serves with the best static layout."""
    obs = observation(demands=[busy("tiny", requests)])
    obs = serving(obs, load_baseline("least_loaded").plan(obs, 1.0, Memo()))
    return replace(obs, ticks_since_replan=5, **changes)  # type: ignore[arg-type]


def without_a_node(obs: Observation) -> Observation:
    lost = tuple(replace(d, available=d.node != "n00") for d in obs.devices)
    return replace(obs, devices=lost, changes=("down:n00",))


def slowed(obs: Observation, speed: float) -> Observation:
    return replace(
        obs, devices=tuple(replace(d, speed=speed if d.node == "n01" else 1.0) for d in obs.devices)
    )


def test_cooldown_answers_pain_only_after_its_rest() -> None:
    hurt = running(pain=0.8)
    assert triggers("cooldown", [running(), hurt, replace(hurt, ticks_since_replan=1)]) == [
        False,
        True,
        False,
    ]


def test_hysteresis_does_not_swing_around_one_mark() -> None:
    high, low = running(60000), running(10)
    between = running(50000)
    said = triggers(
        "hysteresis", [low, high, between, high, between, low, high], HIGH=0.3, LOW=0.5, GROWTH=3.0
    )
    assert said == [False, True, False, False, False, False, True]


def test_take_over_adopts_once() -> None:
    assert triggers("take_over", [running()] * 3) == [True, False, False]


def test_rising_demand_sees_the_trend() -> None:
    steady = running(500, history=((busy("tiny", 500),),) * 4)
    rising = running(900, history=tuple((busy("tiny", n),) for n in (300, 500, 700, 900)))
    assert triggers("rising_demand", [steady, steady, rising], DRIFT=1.4) == [True, False, True]


def test_slow_devices_wakes_when_a_node_throttles_and_when_it_recovers() -> None:
    normal = running()
    said = triggers("slow_devices", [normal, normal, slowed(normal, 0.5), slowed(normal, 0.5), normal])
    assert said == [False, False, True, False, True]


def test_slower_than_planned_compares_with_its_own_past() -> None:
    normal, slow = running(last_serving_s=40.0), running(last_serving_s=90.0)
    assert triggers("slower_than_planned", [normal, normal, slow]) == [False, False, True]


def test_named_pain_ignores_what_a_layout_cannot_cure() -> None:
    queue = running(pain=0.9, signals=(("queueing", -0.9),))
    lost = running(pain=0.9, signals=(("lost_capacity", -0.9),))
    assert triggers("named_pain", [queue, lost]) == [True, False]


def test_makespan_gain_leaves_a_good_layout_alone_and_drops_a_bad_one() -> None:
    good = running(4000)
    bad = serving(good, replace(good.plan, replicas=good.plan.replicas[:1]))
    assert triggers("makespan_gain", [good, bad], COST_WEIGHT=0.2) == [False, True]


def test_gain_over_cost_asks_for_more_when_stalls_count_more() -> None:
    few = running(4000)
    few = serving(few, replace(few.plan, replicas=few.plan.replicas[:2]))
    assert triggers("gain_over_cost", [few], COST_WEIGHT=0.2, HORIZON_WINDOWS=20.0) == [True]
    assert triggers("gain_over_cost", [few], COST_WEIGHT=5.0, HORIZON_WINDOWS=0.5) == [False]


def test_always_and_every_few_windows() -> None:
    assert triggers("always", [running()] * 2) == [True, True]
    fresh = replace(running(), ticks_since_replan=1)
    assert triggers("every_few_windows", [fresh, running()], PERIOD_WINDOWS=3) == [False, True]


def test_load_steps_ignores_noise_within_a_step() -> None:
    said = triggers("load_steps", [running(n) for n in (500, 450, 540, 500, 3000, 3200)], STEP=3.0)
    assert said == [True, False, False, False, True, False]


def test_mix_drift_sees_longer_answers() -> None:
    longer = replace(running(), demand=(busy("tiny", 500, outputs=900.0),))
    assert triggers("mix_drift", [running(), running(), longer]) == [True, False, True]


def test_on_change_only_sees_the_cluster() -> None:
    assert triggers("on_change", [running(pain=1.0), without_a_node(running())]) == [False, True]


def test_every_trigger_repairs_a_layout_that_lost_a_node() -> None:
    quiet = running()
    for name in (
        "cooldown", "every_few_windows", "gain_over_cost", "hysteresis", "load_steps", "makespan_gain", "mix_drift",
        "named_pain", "on_change", "rising_demand", "slow_devices", "slower_than_planned", "take_over",
    ):  # fmt: skip
        assert triggers(name, [quiet, quiet, without_a_node(quiet)])[-1], name
