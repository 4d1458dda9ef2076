"""Plans for memories that are finite: valid within them, honest about what comes of them, and worth it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from physical.scheduling import (
    Access,
    Data,
    Disturbance,
    Following,
    GraphError,
    Heft,
    LookaheadHeft,
    Loss,
    Machine,
    Peft,
    Planner,
    Problem,
    Scheduler,
    Task,
    TaskGraph,
    check,
    host_with_accelerators,
    replay,
    simulate,
    trace_of,
)
from physical.scheduling.carried import carried_out
from physical.scheduling.families import Setting, cholesky, random_problem
from tests.physical.scheduling.strategies import problems
from tests.physical.scheduling.test_room import tightly

some = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
SCHEDULERS: list[Scheduler] = [Heft(), Peft(), LookaheadHeft(), Planner(math.inf, tries=8)]
SECONDS = {"potrf": (3.0, 2.0), "trsm": (4.0, 0.6), "syrk": (4.0, 0.5), "gemm": (8.0, 0.6)}


def tiled(tiles: int, share: float) -> Problem:
    """Cholesky on two CPUs and two GPUs that hold a share of all tiles each."""
    plain = host_with_accelerators("2+2", 2, 2, bytes_per_s=2.0)
    graph = cholesky(tiles, 1)
    bound = share * sum(datum.nbytes for datum in graph.data)
    machine = Machine(
        plain.name,
        plain.units,
        plain.links,
        plain.hops,
        memory_bytes={node: bound for node in plain.nodes[1:] if share < 1.0},
    )
    return Problem(graph, machine, lambda task, kind: SECONDS[task.kernel][kind == "gpu"])


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: s.name)
@some
@given(problem=problems, factor=st.sampled_from((1.0, 1.5, 3.0)))
def test_a_plan_keeps_within_bounds_and_comes_true(
    scheduler: Scheduler, problem: Problem, factor: float
) -> None:
    bounded = tightly(problem, factor)
    plan = scheduler.plan(bounded)
    check(trace_of(plan), exact=True)
    if not bounded.bounded:
        return
    assert simulate(bounded, Following(plan)).as_plan().end_s == plan.end_s
    blind = scheduler.plan(bounded.unbounded())
    followed = simulate(bounded, Following(replace(blind, problem=bounded)))
    assert plan.makespan_s <= followed.makespan_s


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.25, 0.125])
def test_knowing_the_bounds_gains_on_tiled_cholesky(share: float) -> None:
    problem = tiled(8, share)
    planner = Planner(math.inf, tries=24)
    plan = planner.plan(problem)
    blind = replace(planner.plan(problem.unbounded()), problem=problem)
    ignoring = simulate(problem, Following(blind, foresight=False))
    assert plan.makespan_s < 0.97 * ignoring.makespan_s


def test_foresight_moves_less() -> None:
    problem = tiled(8, 0.25)
    blind = replace(Heft().plan(problem.unbounded()), problem=problem)
    foreseeing = check(simulate(problem, Following(blind)))
    ignoring = check(simulate(problem, Following(blind, foresight=False)))
    assert foreseeing.makespan_s < ignoring.makespan_s
    assert foreseeing.moved_bytes < ignoring.moved_bytes


def test_bounds_that_nothing_reaches_change_no_plan_without_bounds() -> None:
    plain, loose = tiled(6, 1.0), tiled(6, 0.99)
    for scheduler in (Heft(), Peft(), LookaheadHeft(), Planner(math.inf, tries=20)):
        free = scheduler.plan(plain)
        same = scheduler.plan(loose.unbounded())
        assert (free.unit, free.start_s, free.end_s, free.moves) == (
            same.unit,
            same.start_s,
            same.end_s,
            same.moves,
        )


def test_a_bounded_plan_is_followed_though_a_unit_goes() -> None:
    problem = tiled(6, 0.25)
    plan = Heft().plan(problem)
    for noise in (0.0, 0.3):
        disturbance = Disturbance(noise, noise, losses=(Loss(0, plan.makespan_s / 3),), seed=1)
        check(simulate(problem, Following(plan), disturbance=disturbance))


def test_a_bounded_plan_is_not_replayed() -> None:
    with pytest.raises(ValueError, match="follow it in simulation"):
        replay(Heft().plan(tiled(4, 0.5)))


def test_what_takes_too_long_is_no_plan() -> None:
    problem = tiled(4, 0.5)
    plan = Heft().plan(problem)
    assert carried_out(problem, plan, 0.5 * plan.makespan_s) is None


@pytest.mark.slow
def test_polishing_is_judged_within_the_bounds() -> None:
    pytest.importorskip("ortools")
    problem = tightly(random_problem("layered", 8, Setting(), 1), 1.0)
    plain = Planner(math.inf, tries=5).plan(problem)
    polished = Planner(math.inf, tries=5, polish_s=0.5).plan(problem)
    check(trace_of(polished), exact=True)
    assert polished.makespan_s <= plain.makespan_s


def test_a_bounded_memory_that_cannot_be_emptied_is_refused() -> None:
    plain = host_with_accelerators("m", 1, 1, bytes_per_s=1.0)
    down = [hop for hop in plain.hops if hop.source == "host"]
    machine = Machine("m", plain.units, plain.links, down, memory_bytes={"gpu0": 5.0})
    graph = TaskGraph("one way", [Task("t", "k", 1.0, (("x", Access.WRITE),), ())], [Data("x", 1.0)])
    with pytest.raises(GraphError, match="memory 'gpu0' is bounded, and no link leads from it to 'host'"):
        Problem(graph, machine, lambda task, kind: 1.0)
