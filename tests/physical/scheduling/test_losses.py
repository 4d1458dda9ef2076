"""Units that are lost midway."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from physical.scheduling import (
    Access,
    Data,
    DataLostError,
    Disturbance,
    Dmdas,
    Eager,
    ExecutionError,
    Following,
    Heft,
    Loss,
    Problem,
    Task,
    TaskGraph,
    Trace,
    check,
    host_with_accelerators,
    replay,
    simulate,
)
from physical.scheduling.families import cholesky
from physical.scheduling.port import Dispatcher
from tests.physical.scheduling.strategies import problems

TABLE = {"potrf": (3.0, 2.0), "trsm": (6.0, 1.0), "syrk": (6.0, 0.5), "gemm": (9.0, 0.5)}


def a_cholesky(tiles: int = 6, gpus: int = 2) -> Problem:
    machine = host_with_accelerators("m", 3, gpus, bytes_per_s=4.0, host_streams=1)
    return Problem(cholesky(tiles, 1.0), machine, lambda task, kind: TABLE[task.kernel][kind == "gpu"])


def dispatchers(problem: Problem) -> list[Dispatcher]:
    return [Eager(), Dmdas(), Following(Heft().plan(problem))]


def outcome(problem: Problem, dispatcher: Dispatcher, disturbance: Disturbance) -> Trace | ExecutionError:
    """A checked trace, or why there is none."""
    try:
        return check(simulate(problem, dispatcher, disturbance=disturbance))
    except ExecutionError as error:
        return error


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("lost", [0, 2, 3, 4])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.8])
def test_work_goes_on_without_a_unit(number: int, lost: int, share: float) -> None:
    problem = a_cholesky()
    calm = simulate(problem, dispatchers(problem)[number])
    at_s = share * calm.makespan_s
    disturbance = Disturbance(losses=(Loss(lost, at_s),))
    trace = outcome(problem, dispatchers(problem)[number], disturbance)
    if isinstance(trace, DataLostError):
        assert lost >= 3, "host memory survives its processors"
        assert "datum 'A" in str(trace)
        return
    assert isinstance(trace, Trace)
    assert trace.lost == ((lost, at_s),)
    assert not any(run.unit == lost and run.end_s > at_s for run in trace.runs)


def test_what_lay_only_in_a_lost_memory_is_computed_again() -> None:
    write, read = Access.WRITE, Access.READ
    tasks = [
        Task("make", "fast", accesses=(("x", write),)),
        Task("long", "slow", accesses=(("y", write),)),
        Task("use", "fast", accesses=(("x", read), ("y", read))),
    ]
    graph = TaskGraph("again", tasks, [Data("x", 1.0), Data("y", 1.0)])
    machine = host_with_accelerators("m", 1, 2, bytes_per_s=1.0)
    seconds = {("fast", "gpu"): 1.0, ("fast", "cpu"): 50.0, ("slow", "cpu"): 10.0}
    problem = Problem(graph, machine, lambda task, kind: seconds.get((task.kernel, kind)))
    maker = next(run.unit for run in simulate(problem, Eager()).runs if run.task == 0)
    trace = check(simulate(problem, Eager(), disturbance=Disturbance(losses=(Loss(maker, 5.0),))))
    assert [run.completed for run in trace.runs if run.task == 0] == [True, True]
    assert {run.unit for run in trace.runs if run.task == 0} == {1, 2}


def test_what_cannot_be_computed_again_is_named() -> None:
    update = Access.READ_WRITE
    tasks = [
        Task("first", "gpu only", accesses=(("x", update),)),
        Task("second", "host only", accesses=(("x", update),)),
        Task("third", "gpu only", accesses=(("x", update),)),
        Task("wait", "long"),
        Task("fourth", "any", accesses=(("x", update),), after=("wait",)),
    ]
    graph = TaskGraph("overwritten", tasks, [Data("x", 1.0)])
    machine = host_with_accelerators("m", 2, 1, bytes_per_s=1.0)
    able = {("gpu only", "gpu"), ("host only", "cpu"), ("long", "cpu"), ("any", "cpu"), ("any", "gpu")}
    problem = Problem(
        graph,
        machine,
        lambda task, kind: (
            20.0
            if task.kernel == "long" and kind == "cpu"
            else (1.0 if (task.kernel, kind) in able else None)
        ),
    )
    # Host memory holds what `second` made, so only `third` is gone, and nothing else can run it.
    with pytest.raises(ExecutionError, match="undone"):
        simulate(problem, Eager(), disturbance=Disturbance(losses=(Loss(2, 12.0),)))


def test_the_last_unit() -> None:
    problem = a_cholesky(gpus=0)
    losses = tuple(Loss(unit, 5.0) for unit in range(problem.units))
    for dispatcher in dispatchers(problem):
        with pytest.raises(ExecutionError, match="every unit is lost"):
            simulate(problem, dispatcher, disturbance=Disturbance(losses=losses))


def test_a_plan_to_the_letter_says_that_it_cannot() -> None:
    plan = Heft().plan(a_cholesky())
    with pytest.raises(ValueError, match="simulate a dispatcher"):
        replay(plan, Disturbance(losses=(Loss(0, 1.0),)))


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(problem=problems, seed=st.integers(0, 1000))
def test_a_loss_anywhere_ends_in_a_valid_schedule_or_a_named_reason(problem: Problem, seed: int) -> None:
    rng = random.Random(seed)
    loss = Loss(rng.randrange(problem.units), rng.uniform(0.0, 10.0))
    rest = [g for g, group in enumerate(problem.groups) if set(group.units) - {loss.unit}]
    possible = all(any(row[g] < math.inf for g in rest) for row in problem.durations)
    for dispatcher in dispatchers(problem):
        ended = outcome(problem, dispatcher, Disturbance(losses=(loss,)))
        if isinstance(ended, DataLostError):
            assert problem.nodes > 1
            assert "a unit went" in str(ended)
        elif isinstance(ended, ExecutionError):
            assert not possible
