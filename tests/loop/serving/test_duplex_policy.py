"""One policy in two places: routing waits for no plan, and the memo is one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from loop.compose.serving_policies import load_policy
from loop.contracts import (
    Memo,
    Observation,
    Plan,
    PolicyCrashed,
    PolicyFault,
    ReplicaView,
    RequestView,
)
from loop.guard import GuardedPolicy
from loop.runner.serving_policy import DuplexPolicy
from strategy.baselines import load_baseline
from tests.loop.builders import observation, replica_view, request_view
from tests.loop.live_world import edited


class Half:
    """A half whose decisions a test writes."""

    name, digest = "half", "0" * 12

    def __init__(self) -> None:
        self.on_plan: Callable[[Memo], None] = lambda _memo: None
        self.on_route: Callable[[Memo], None] = lambda _memo: None
        self.closed = False

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        return True

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        self.on_plan(memo)
        return obs.plan

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
        self.on_route(memo)
        return 0

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        return memo.get("planned", 0.0)

    def close(self) -> None:
        self.closed = True


def halves() -> tuple[Half, Half, DuplexPolicy]:
    planner, router = Half(), Half()
    return planner, router, DuplexPolicy(planner, router)


def routed(policy: DuplexPolicy) -> tuple[int, float]:
    return policy.dispatch(request_view(), (replica_view(),), Memo())


def test_routing_answers_while_a_plan_is_being_made():
    planner, _, policy = halves()
    begun, free = threading.Event(), threading.Event()

    def think(_memo: Memo) -> None:
        begun.set()
        assert free.wait(300)

    planner.on_plan = think
    thread = threading.Thread(target=policy.plan, args=(observation(), 2.0, Memo()))
    thread.start()
    assert begun.wait(300)
    assert routed(policy) == (0, 0.0)  # would never return, had it to wait
    free.set()
    thread.join(300)


def test_what_a_plan_writes_routing_sees_and_the_other_way_round():
    planner, router, policy = halves()
    memo = Memo({"old": 1.0})
    policy.sync(memo)
    planner.on_plan = lambda m: m.update(planned=7.0)
    router.on_route = lambda m: m.update(routed=m.get("routed", 0.0) + 1.0)
    policy.plan(observation(), 2.0, memo)
    assert routed(policy) == (0, 7.0)
    routed(policy)
    policy.sync(memo)
    assert dict(memo) == {"old": 1.0, "planned": 7.0, "routed": 2.0}


def test_both_may_write_at_once_and_nothing_is_lost():
    planner, router, policy = halves()
    memo = Memo({"a": 1.0, "b": 1.0})
    policy.sync(memo)
    router.on_route = lambda m: (m.update(b=2.0), m.pop("a", None))
    planner.on_plan = lambda m: (routed(policy), m.update(c=3.0))
    policy.plan(observation(), 2.0, memo)
    policy.sync(memo)
    assert dict(memo) == {"b": 2.0, "c": 3.0}


def test_a_memo_that_comes_back_is_the_routing_half_s_too():
    _, _, policy = halves()
    policy.sync(Memo({"planned": 5.0}))
    assert routed(policy) == (0, 5.0)


def test_the_memo_stays_within_its_bounds():
    planner, router, policy = halves()
    memo = Memo()
    policy.sync(memo)
    router.on_route = lambda m: [m.__setitem__(f"r{i}", 1.0) for i in range(Memo.LIMIT)]
    planner.on_plan = lambda m: [m.__setitem__(f"p{i}", 1.0) for i in range(10)]
    routed(policy)
    policy.plan(observation(), 2.0, memo)
    policy.sync(memo)
    assert len(memo) == Memo.LIMIT
    assert all(memo[f"p{i}"] for i in range(10))


def test_closed_it_answers_no_more_and_both_halves_are_ended():
    planner, router, policy = halves()
    policy.close()
    assert planner.closed
    assert router.closed
    with pytest.raises(PolicyCrashed, match="closed"):
        routed(policy)


def test_a_baseline_serves_in_process_and_foreign_code_in_two_sandboxes():
    baseline = load_policy(load_baseline("least_loaded").as_source())
    baseline.close()
    source = edited(
        "counts",
        "route",
        'memo["seen"] = memo.get("seen", 0.0) + 1.0\n    if memo.get("bad"): raise ValueError("bad")',
    )
    policy = load_policy(source)
    try:
        memo = Memo()
        guarded = GuardedPolicy(policy, load_baseline("least_loaded"))
        views = (replica_view(id=0), replica_view(id=1, waiting_tokens=50_000, outstanding_tokens=5e4))
        assert [guarded.dispatch(request_view(), views, memo)[0] for _ in range(3)] == [0, 0, 0]
        guarded.sync(memo)
        assert memo["seen"] == 3.0
        memo["bad"] = 1.0
        guarded.sync(memo)
        assert guarded.dispatch(request_view(), views, memo)[0] == 0  # the fallback's answer
        assert guarded.faults.errors == 1
    finally:
        policy.close()
    with pytest.raises(PolicyFault):
        policy.dispatch(request_view(), views, memo)
