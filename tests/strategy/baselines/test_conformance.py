"""Every baseline passes the suite that every policy must pass."""

from __future__ import annotations

from strategy.baselines import BASELINES, load_baseline
from tests.strategy.conformance import PolicyConformance


class TestRoundRobin(PolicyConformance):
    policy = load_baseline("round_robin")


class TestLeastLoaded(PolicyConformance):
    policy = load_baseline("least_loaded")


class TestKvAware(PolicyConformance):
    policy = load_baseline("kv_aware")


class TestThresholdAutoscaler(PolicyConformance):
    policy = load_baseline("threshold_autoscaler")


class TestStaticDisaggregated(PolicyConformance):
    policy = load_baseline("static_disaggregated")


class TestMilpReplan(PolicyConformance):
    policy = load_baseline("milp_replan")


class TestPeriodicRebalance(PolicyConformance):
    policy = load_baseline("periodic_rebalance")


def test_no_baseline_escapes_the_suite() -> None:
    judged = {cls.policy.name for cls in PolicyConformance.__subclasses__() if cls.__module__ == __name__}
    assert judged == set(BASELINES)
