"""Whether a policy can decide: asked everything in process, since tests trust what they wrote themselves."""

from __future__ import annotations

from loop.contracts import Memo, PolicySource
from loop.guard import plan_problems
from tests.strategy.builders import busy, observation, policy_of, replica, serving
from tests.strategy.builders import request as a_request

REQUEST = a_request(7, arrival_s=3.0, now_s=5.0)


def can_decide(policy: PolicySource) -> None:
    """Everything that a policy is asked for, in process: a plan that can be carried out, and the rest."""
    loaded = policy_of(policy.name, policy.source)
    obs, memo = observation(demands=[busy("tiny")]), Memo()
    plan = loaded.plan(obs, 1.0, memo)
    assert plan_problems(plan, obs) == []
    later = serving(obs, plan)
    assert loaded.should_replan(later, memo) in (True, False)
    assert plan_problems(loaded.plan(later, 1.0, memo), later) == []
    views = [replica(i, waiting=i, ready_in_s=float(i)) for i in range(5)]
    for cached in ((), (0, 0, 400, 0, 0)):
        index = loaded.route(REQUEST._replace(cached_tokens=cached), views, memo)
        assert 0 <= index < 5
        assert isinstance(loaded.priority(REQUEST, views[index], memo), float)
