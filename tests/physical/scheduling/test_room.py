"""Memories that are finite: nothing is ever fuller than it can be, everything is done all the same."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from physical.scheduling import (
    Dispatcher,
    Dmda,
    Dmdas,
    Eager,
    Following,
    Heft,
    Problem,
    TaskTooLargeError,
    check,
    simulate,
)
from physical.scheduling.cli import app
from physical.scheduling.formats import FormatError, read_machine
from physical.scheduling.graph import Access, Data, GraphError, Task, TaskGraph
from physical.scheduling.machine import Machine, MachineError, host_with_accelerators
from physical.scheduling.trace import InvalidScheduleError
from tests.physical.scheduling.strategies import problems

some = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
DISPATCHERS: dict[str, Callable[[Problem], Dispatcher]] = {
    "eager": lambda problem: Eager(),
    "dmda": lambda problem: Dmda(),
    "dmdas": lambda problem: Dmdas(),
    "following": lambda problem: Following(Heft().plan(problem)),
    "stealing at once": lambda problem: Following(Heft().plan(problem), lateness=0.0, margin=0.0),
}


def tightly(problem: Problem, factor: float) -> Problem:
    """The same problem, each memory but the first with room for `factor` of the largest task."""
    machine = problem.machine
    most = max((problem.working_bytes(task) for task in range(problem.tasks)), default=0.0) or 1.0
    bound = Machine(
        machine.name,
        machine.units,
        machine.links,
        machine.hops,
        memory_bytes=dict.fromkeys(machine.nodes[1:], factor * most),
    )
    durations = {
        (task.kernel, task.size, group.kind): problem.durations[number][at]
        for number, task in enumerate(problem.graph.tasks)
        for at, group in enumerate(problem.groups)
    }
    return Problem(problem.graph, bound, lambda task, kind: durations[task.kernel, task.size, kind])


@pytest.mark.parametrize("name", DISPATCHERS)
@some
@given(problem=problems, factor=st.sampled_from((1.0, 1.3, 2.0, 5.0)), prefetch=st.booleans())
def test_no_memory_is_fuller_than_it_can_be(
    name: str, problem: Problem, factor: float, prefetch: bool
) -> None:
    bounded = tightly(problem, factor)
    trace = simulate(bounded, DISPATCHERS[name](bounded), prefetch=prefetch)
    check(trace, exact=True)


def many_readers(memory_bytes: float) -> Problem:
    """Twelve values of 10 bytes, each read by two tasks that only the GPU can do."""
    plain = host_with_accelerators("one GPU", 1, 1, bytes_per_s=100.0)
    machine = Machine(plain.name, plain.units, plain.links, plain.hops, memory_bytes={"gpu0": memory_bytes})
    data = [Data(f"x{i}", 10.0) for i in range(12)]
    order = [*range(12), *random.Random(3).sample(range(12), 12)]
    tasks = [Task(f"t{n}", "k", 1.0, ((f"x{i}", Access.READ),), ()) for n, i in enumerate(order)]
    graph = TaskGraph("readers", tasks, data)
    return Problem(graph, machine, lambda task, kind: 1.0 if kind == "gpu" else None)


def test_clean_copies_give_way_and_are_brought_again() -> None:
    loose, tight = many_readers(1000.0), many_readers(30.0)
    free = check(simulate(loose, Eager()))
    narrow = check(simulate(tight, Eager()))
    assert (len(free.moves), len(free.drops)) == (12, 0)
    assert len(narrow.moves) > 12
    assert len(narrow.drops) >= len(narrow.moves) - 3


def test_prefetch_fills_what_is_free_and_no_more() -> None:
    tight = many_readers(30.0)
    plan = Heft().plan(tight.unbounded())
    ahead = check(simulate(tight, Following(replace(plan, problem=tight))))
    behind = check(simulate(tight, Following(replace(plan, problem=tight)), prefetch=False))
    assert ahead.makespan_s < behind.makespan_s


def test_only_copies_are_carried_home_before_they_go() -> None:
    plain = host_with_accelerators("one GPU", 1, 1, bytes_per_s=100.0)
    machine = Machine(plain.name, plain.units, plain.links, plain.hops, memory_bytes={"gpu0": 20.0})
    data = [Data(f"y{i}", 10.0) for i in range(6)]
    makes = [Task(f"make{i}", "k", 1.0, ((f"y{i}", Access.WRITE),), ()) for i in range(6)]
    reads = [Task(f"read{i}", "k", 1.0, ((f"y{i}", Access.READ),), ()) for i in range(6)]
    graph = TaskGraph("results", [*makes, *reads], data)
    problem = Problem(graph, machine, lambda task, kind: 1.0 if kind == "gpu" else None)
    trace = check(simulate(problem, Eager()))
    host, card = machine.nodes.index("host"), machine.nodes.index("gpu0")
    assert sum(move.source == card and move.target == host for move in trace.moves) >= 4


def test_the_check_finds_a_memory_that_is_too_full() -> None:
    trace = simulate(many_readers(1000.0), Eager())
    with pytest.raises(InvalidScheduleError, match="memory 'gpu0' holds"):
        check(replace(trace, problem=many_readers(30.0)))
    narrow = simulate(many_readers(30.0), Eager())
    with pytest.raises(InvalidScheduleError, match=r"holds|given way"):
        check(replace(narrow, drops=()))


def test_what_fits_nowhere_is_refused_by_name() -> None:
    with pytest.raises(TaskTooLargeError, match=r"task 't0' needs 10 bytes.*unit 'gpu0'.*has 9") as refused:
        many_readers(9.0)
    error = refused.value
    assert (error.task, error.unit, error.needed_bytes, error.available_bytes) == ("t0", "gpu0", 10.0, 9.0)
    plain = host_with_accelerators("m", 1, 1, bytes_per_s=1.0)
    for bounds, said in (
        ({"gpu7": 5.0}, "no memory 'gpu7'"),
        ({"host": 5.0}, "first"),
        ({"gpu0": 0.0}, "holds 0"),
    ):
        with pytest.raises(MachineError, match=said):
            Machine("m", plain.units, plain.links, plain.hops, memory_bytes=bounds)
    machine = Machine("m", plain.units, plain.links, plain.hops, memory_bytes={"gpu0": 5.0})
    graph = TaskGraph("home", [], [Data("x", 9.0, "gpu0")])
    with pytest.raises(GraphError, match="9 bytes are at home in memory 'gpu0'"):
        Problem(graph, machine, lambda task, kind: 1.0)


def test_a_machine_file_bounds_its_memories(tmp_path: Path) -> None:
    machine = {
        "units": [{"kind": "cpu", "memory": "host"}, {"kind": "gpu", "memory": "card"}],
        "links": [{"name": "down", "bytes_per_s": 10.0}, {"name": "up", "bytes_per_s": 10.0}],
        "hops": [
            {"from": "host", "to": "card", "links": ["down"]},
            {"from": "card", "to": "host", "links": ["up"]},
        ],
        "memories": {"card": 25.0},
    }
    graph = {
        "tasks": [{"name": f"t{i}", "kernel": "k", "reads": [f"x{i % 4}"]} for i in range(8)],
        "data": [{"name": f"x{i}", "bytes": 10.0} for i in range(4)],
        "durations": {"k": {"cpu": 9.0, "gpu": 1.0}},
    }
    (tmp_path / "m.json").write_text(json.dumps(machine))
    (tmp_path / "g.json").write_text(json.dumps(graph))
    assert read_machine(tmp_path / "m.json").memory_bytes == {"card": 25.0}
    asked = [
        "schedule",
        str(tmp_path / "g.json"),
        "--machine",
        str(tmp_path / "m.json"),
        "--scheduler",
        "heft",
        "--json",
    ]
    said = CliRunner().invoke(app, asked)
    assert said.exit_code == 0, said.output
    tight = json.loads(said.stdout)["schedulers"]["heft"]["makespan_s"]
    (tmp_path / "m.json").write_text(json.dumps(machine | {"memories": {}}))
    assert tight >= json.loads(CliRunner().invoke(app, asked).stdout)["schedulers"]["heft"]["makespan_s"]
    (tmp_path / "m.json").write_text(json.dumps(machine | {"memories": [5]}))
    with pytest.raises(FormatError, match="memories must be an object"):
        read_machine(tmp_path / "m.json")
