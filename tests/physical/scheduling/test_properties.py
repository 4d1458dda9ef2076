"""What holds for every graph on every machine."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from physical.scheduling import (
    Disturbance,
    Dmda,
    Dmdas,
    Eager,
    Following,
    Heft,
    LookaheadHeft,
    Online,
    Peft,
    Planner,
    Priority,
    Problem,
    Scheduler,
    Slowdown,
    check,
    lower_bound_s,
    replay,
    simulate,
    trace_of,
)
from physical.scheduling.bounds import staged_bound_s
from physical.scheduling.port import Dispatcher
from tests.physical.scheduling.strategies import problems

SCHEDULERS: dict[str, Callable[[], Scheduler]] = {
    "planner": lambda: Planner(math.inf, tries=12),
    "heft": Heft,
    "peft": Peft,
    "lookahead": LookaheadHeft,
    "dmda": lambda: Online(Dmda),
    "dmdas": lambda: Online(Dmdas),
    "eager": lambda: Online(Eager),
    "prio": lambda: Online(Priority),
}
DISPATCHERS: dict[str, Callable[[Problem], Dispatcher]] = {
    "eager": lambda problem: Eager(),
    "prio": lambda problem: Priority(),
    "dmda": lambda problem: Dmda(),
    "dmdas": lambda problem: Dmdas(),
    "following": lambda problem: Following(Heft().plan(problem)),
    "following without stealing": lambda problem: Following(Heft().plan(problem), stealing=False),
    "stealing at once": lambda problem: Following(Heft().plan(problem), lateness=0.0, margin=0.0),
}
few = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", SCHEDULERS)
@few
@given(problem=problems)
def test_every_plan_is_valid_and_takes_as_long_as_it_says(name: str, problem: Problem) -> None:
    plan = SCHEDULERS[name]().plan(problem, 3)
    check(trace_of(plan), exact=True)
    done = check(replay(plan), exact=True)
    assert done.makespan_s == plan.makespan_s
    assert done.as_plan().start_s == plan.start_s


@few
@given(problem=problems)
def test_the_planner_is_never_worse_than_the_passive_queue_or_heft(problem: Problem) -> None:
    plan = Planner(math.inf, tries=12).plan(problem)
    assert plan.makespan_s <= Online(Eager).plan(problem).makespan_s
    assert plan.makespan_s <= Heft().plan(problem).makespan_s * (1 + 1e-9)


@few
@given(problem=problems, seed=st.integers(0, 5))
def test_the_same_seed_gives_the_same_plan(problem: Problem, seed: int) -> None:
    first, second = (Planner(math.inf, tries=15).plan(problem, seed) for _ in range(2))
    assert first == second
    assert first.moves == second.moves


@pytest.mark.parametrize("name", DISPATCHERS)
@few
@given(problem=problems, prefetch=st.booleans())
def test_every_execution_is_valid(name: str, problem: Problem, prefetch: bool) -> None:
    check(simulate(problem, DISPATCHERS[name](problem), prefetch=prefetch), exact=True)


@pytest.mark.parametrize("name", ["dmdas", "following", "stealing at once"])
@few
@given(problem=problems, seed=st.integers(0, 100))
def test_executions_stay_valid_when_things_go_otherwise(name: str, problem: Problem, seed: int) -> None:
    slow = Slowdown(0, 0.5, 2.5, 3.0)
    disturbance = Disturbance(0.3, 0.3, slowdowns=(slow,), seed=seed)
    traces = [simulate(problem, DISPATCHERS[name](problem), disturbance=disturbance) for _ in range(2)]
    check(traces[0])
    assert traces[0] == traces[1]


@few
@given(problem=problems, seed=st.integers(0, 100))
def test_a_plan_to_the_letter_stays_valid_under_noise(problem: Problem, seed: int) -> None:
    check(replay(Heft().plan(problem), Disturbance(0.3, 0.3, seed=seed)))


@pytest.mark.slow
@few
@given(problem=problems)
def test_the_staged_bound_is_a_bound_and_no_looser(problem: Problem) -> None:
    bound_s = staged_bound_s(problem, steps=3)
    assert bound_s >= lower_bound_s(problem) * (1 - 1e-9)
    assert bound_s <= Planner(math.inf, tries=8).plan(problem).makespan_s * (1 + 1e-9)


@pytest.mark.slow
@settings(few, max_examples=150)
@given(problem=problems, seed=st.integers(0, 100))
def test_all_of_it_on_many_more_problems(problem: Problem, seed: int) -> None:
    for make in SCHEDULERS.values():
        plan = make().plan(problem, seed)
        check(trace_of(plan), exact=True)
        assert replay(plan).makespan_s == plan.makespan_s
    for follow in DISPATCHERS.values():
        check(simulate(problem, follow(problem)), exact=True)
        check(simulate(problem, follow(problem), disturbance=Disturbance(0.2, 0.2, seed=seed)))
