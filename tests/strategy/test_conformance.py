"""The suite can fail: policies that break one rule each are caught by the test of that rule."""

from __future__ import annotations

import pytest

from tests.strategy.builders import policy_of
from tests.strategy.conformance import PolicyConformance

GOOD = """
from strategy.policy_api import *

def should_replan(obs, memo):
    return not obs.plan.replicas or bool(obs.changes)

def plan(obs, budget_s, memo):
    return Plan(fill(obs, loads(obs), keep(obs)))

def route(request, replicas, memo):
    return first_to_finish(request, replicas)

def priority(request, replica, memo):
    return first_come(request)
"""


def suite(source: str) -> PolicyConformance:
    judged = PolicyConformance()
    judged.policy = policy_of("mutant", source)
    return judged


MUTANTS = [
    (
        "test_no_request_starves_behind_those_that_come_later",
        "first_come(request)",
        "float(request.input_tokens)",
    ),
    ("test_spreads_requests_over_all_replicas", "first_to_finish(request, replicas)", "0"),
    (
        "test_prefers_replicas_that_serve_over_those_that_start",
        "first_to_finish(request, replicas)",
        "min(range(len(replicas)), key=lambda i: replicas[i].waiting)",
    ),
    (
        "test_does_not_send_a_request_where_it_cannot_fit",
        "first_to_finish(request, replicas)",
        "min(range(len(replicas)), key=lambda i: backlog_s(replicas[i]))",
    ),
    (
        "test_gives_up_a_lost_replica_and_keeps_the_others",
        "fill(obs, loads(obs), keep(obs))",
        "obs.plan.replicas[:1]",
    ),
    ("test_batch_leaves_no_device_idle_that_could_help", "keep(obs))", "keep(obs), until_s=1e9)"),
    (
        "test_leaves_spot_devices_before_they_are_reclaimed",
        "fill(obs, loads(obs), keep(obs))",
        "obs.plan.replicas or fill(obs, loads(obs))",
    ),
    ("test_replans_when_nothing_serves", "not obs.plan.replicas or", "False and"),
    ("test_settles_when_nothing_changes", "keep(obs))", "(), 256 + obs.tick)[obs.tick:]"),
    (
        "test_speed_zero_does_not_break_routing",
        "first_to_finish(request, replicas)",
        "int(1 / replicas[0].speed) * 0",
    ),
]


@pytest.mark.parametrize(("rule", "right", "wrong"), MUTANTS, ids=[rule for rule, _, _ in MUTANTS])
def test_a_policy_that_breaks_a_rule_is_caught(rule: str, right: str, wrong: str) -> None:
    assert right in GOOD
    getattr(suite(GOOD), rule)()
    with pytest.raises((AssertionError, ArithmeticError, LookupError)):
        getattr(suite(GOOD.replace(right, wrong)), rule)()
