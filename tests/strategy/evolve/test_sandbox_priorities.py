"""The priorities of many requests in one crossing: the same as one by one, and a fault of one is not the others'."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from loop.contracts import REJECT, Memo, PolicyTimeout, RequestView
from strategy.evolve.sandbox import SandboxedPolicy, SandboxLimits, WorkerSupply
from tests.strategy.builders import replica
from tests.strategy.evolve.hostile import policy

LIMITS = SandboxLimits(route_s=30.0)
REQUESTS = [RequestView(n, "tiny", 2.5, 3.0, 100 * n, 100.0, 0, 0) for n in range(6)]


@pytest.fixture(scope="module")
def supply() -> Iterator[WorkerSupply]:
    with WorkerSupply(LIMITS) as workers:
        yield workers


def test_as_one_by_one(supply: WorkerSupply) -> None:
    source = policy(
        priority="return request.input_tokens * 2.0 + replica.waiting if request.id != 3 else float('inf')"
    )
    with SandboxedPolicy(source, supply=supply) as boxed:
        memo, view = Memo(), replica(0, waiting=7)
        together = boxed.priorities(REQUESTS, view, memo)
        assert together == [boxed.priority(request, view, memo) for request in REQUESTS]
        assert together[3] == REJECT
        assert boxed.priorities([], view, memo) == []


def test_a_fault_of_one_is_not_the_others(supply: WorkerSupply) -> None:
    with SandboxedPolicy(policy(priority="return 1.0 / request.input_tokens"), supply=supply) as boxed:
        found = boxed.priorities(REQUESTS, replica(0), Memo())
        assert math.isnan(found[0])
        assert found[1:] == [1.0 / request.input_tokens for request in REQUESTS[1:]]


def test_the_memo_is_brought_along(supply: WorkerSupply) -> None:
    source = policy(priority="memo['n'] = memo.get('n', 0.0) + 1.0\nreturn memo['n']")
    with SandboxedPolicy(source, supply=supply) as boxed:
        memo = Memo()
        assert boxed.priorities(REQUESTS, replica(0), memo) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        assert memo == {"n": 6.0}
        memo["n"] = 10.0
        assert boxed.priorities(REQUESTS[:2], replica(0), memo) == [11.0, 12.0]
        assert boxed.priority(REQUESTS[0], replica(0), memo) == 13.0


@pytest.mark.slow
def test_late_answers_end_the_worker() -> None:
    source = policy(priority="while request.id == 4: pass\nreturn 0.0")
    with SandboxedPolicy(source, SandboxLimits(route_s=2.0)) as boxed:
        with pytest.raises(PolicyTimeout):
            boxed.priorities(REQUESTS, replica(0), Memo())
        assert boxed.kills == 1
        assert boxed.priorities(REQUESTS[:3], replica(0), Memo()) == [0.0, 0.0, 0.0]
