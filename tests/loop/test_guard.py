from __future__ import annotations

import math
from typing import Any

import pytest

from loop.contracts import REJECT, Memo, Plan, PolicyTimeout, Role
from loop.guard import LAST_PLACE, GuardConfig, GuardedPolicy, plan_problems
from tests.loop.builders import ScriptedPolicy, observation, option, replica_view, request_view, spec

GOOD = Plan((spec("n0/gpu0"),))
FALLBACK = Plan((spec("n0/gpu0", "n0/gpu1"),), reason="fallback")


def guarded(config: GuardConfig | None = None, **answers: Any) -> GuardedPolicy:
    fallback = ScriptedPolicy(plan=FALLBACK, route=1, priority=7.0, should_replan=True)
    return GuardedPolicy(ScriptedPolicy(**answers), fallback, config)


def test_good_answers_pass_unchanged() -> None:
    policy = guarded(plan=GOOD, route=1, priority=3.5)
    replicas = [replica_view(), replica_view(id=1)]
    assert policy.plan(observation(), 1.0, Memo()) is GOOD
    assert policy.dispatch(request_view(), replicas, Memo()) == (1, 3.5)
    assert policy.faults.total == 0


@pytest.mark.parametrize("answer", [-1, 2, True, 1.0, None, "0", ValueError("boom"), PolicyTimeout("late")])
def test_a_bad_route_is_replaced_and_counted(answer: Any) -> None:
    policy = guarded(route=answer)
    replicas = [replica_view(), replica_view(id=1)]
    index, _ = policy.dispatch(request_view(), replicas, Memo())
    assert index == 1
    assert policy.faults.total == 1
    assert policy.faults.timeouts == isinstance(answer, PolicyTimeout)
    assert policy.faults.examples


@pytest.mark.parametrize("answer", [math.nan, -math.inf, None, "1", RuntimeError("boom")])
def test_a_bad_priority_is_replaced_and_counted(answer: Any) -> None:
    policy = guarded(priority=answer)
    assert policy.dispatch(request_view(), [replica_view()], Memo())[1] == 7.0
    assert policy.faults.total == 1


@pytest.mark.parametrize("answer", [1, None, "yes", KeyError("boom")])
def test_a_bad_trigger_is_replaced_and_counted(answer: Any) -> None:
    policy = guarded(should_replan=answer)
    assert policy.should_replan(observation(), Memo()) is True
    assert policy.faults.total == 1


def test_refusals_beyond_the_share_go_to_the_end_of_the_queue() -> None:
    policy = guarded(GuardConfig(reject_share=0.5), priority=REJECT)
    answers = [policy.dispatch(request_view(), [replica_view()], Memo())[1] for _ in range(4)]
    assert answers == [LAST_PLACE, REJECT, LAST_PLACE, REJECT]
    assert guarded(priority=REJECT).dispatch(request_view(), [replica_view()], Memo())[1] == LAST_PLACE


def test_an_infeasible_plan_is_replaced_by_the_fallbacks() -> None:
    policy = guarded(plan=Plan((spec("n9/gpu0"),)))
    assert policy.plan(observation(), 1.0, Memo()) == FALLBACK
    assert policy.faults.infeasible == 1
    assert "n9/gpu0" in policy.faults.examples[0]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan((spec("n9/gpu0"),)), "unknown device"),
        (Plan((spec("n0/gpu0"), spec("n0/gpu0"))), "used by replica 0 too"),
        (Plan((spec("n0/gpu0", tp=2),)), "needs tp * pp = 2"),
        (Plan((spec("n0/gpu0", "n0/gpu1", tp=1, pp=2),)), "does not fit"),
        (Plan((spec("n0/gpu0", "n1/gpu0"),)), "crosses nodes"),
        (Plan((spec("n0/gpu0", max_num_seqs=0),)), "must be positive"),
        (Plan((spec("n0/gpu0", model="other"),)), "does not fit"),
        (Plan((spec("n0/gpu0", role=Role.DECODE),)), "no replica takes requests for m"),
        (Plan(()), "no replica takes requests for m"),
    ],
)
def test_each_infeasible_plan_is_named(plan: Plan, words: str) -> None:
    assert any(words in problem for problem in plan_problems(plan, observation()))


def test_an_unavailable_device_is_named() -> None:
    obs = observation()
    gone = observation(devices=(*obs.devices[1:], obs.devices[0].__class__(**_off(obs.devices[0]))))
    assert any("not available" in p for p in plan_problems(GOOD, gone))
    assert not plan_problems(GOOD, obs)


def test_a_model_that_no_usable_kind_can_hold_is_not_asked_for() -> None:
    obs = observation(options=(option(), option(model="huge", kind="b200")))
    assert not plan_problems(GOOD, obs)


def _off(view: Any) -> dict[str, Any]:
    return {name: getattr(view, name) for name in type(view).__slots__} | {"available": False}
