"""Dependencies from data, and graphs that are refused."""

from __future__ import annotations

import pytest

from physical.scheduling import (
    Access,
    CyclicGraphError,
    Data,
    Eager,
    GraphError,
    Heft,
    LookaheadHeft,
    Machine,
    MachineError,
    Online,
    Peft,
    Planner,
    Problem,
    Task,
    TaskGraph,
    Unit,
    host_with_accelerators,
)
from physical.scheduling.families import FAMILIES, Setting, cholesky, random_problem

R, W, RW = Access.READ, Access.WRITE, Access.READ_WRITE
ONE = Machine("one", [Unit("u", "cpu", "ram")])


def test_reads_and_writes_order_tasks() -> None:
    tasks = [
        Task("w", "k", accesses=(("x", W),)),
        Task("r1", "k", accesses=(("x", R),)),
        Task("r2", "k", accesses=(("x", R),)),
        Task("u", "k", accesses=(("x", RW),)),
        Task("over", "k", accesses=(("x", W),)),
    ]
    graph = TaskGraph("g", tasks, [Data("x", 1.0)])
    assert graph.predecessors == ((), (0,), (0,), (0, 1, 2), (3,))
    assert graph.inputs[3] == graph.inputs[1] == graph.outputs[0]
    assert graph.inputs[4] == ()


def test_cholesky_has_the_tasks_it_should() -> None:
    graph = cholesky(32, 1.0)
    assert len(graph) == 5984
    assert len(graph.data) == 32 * 33 // 2
    small = cholesky(3, 1.0)
    last = small.index("potrf2")
    assert {small.tasks[p].name for p in small.predecessors[last]} == {"syrk2,1"}


@pytest.mark.parametrize(
    ("after", "cycle"),
    [
        ({"a": ("a",)}, ("a",)),
        ({"a": ("c",), "b": ("a",), "c": ("b",)}, ("a", "b", "c")),
    ],
)
def test_a_circle_is_refused_by_name(after: dict[str, tuple[str, ...]], cycle: tuple[str, ...]) -> None:
    tasks = [Task(name, "k", after=after.get(name, ())) for name in "abcd"]
    with pytest.raises(CyclicGraphError, match="graph 'g': these tasks wait for each other") as caught:
        TaskGraph("g", tasks)
    found = caught.value.cycle
    assert sorted(found) == list(cycle)
    for before, task in zip(found, (*found[1:], found[0]), strict=True):
        assert before in after[task]


@pytest.mark.parametrize(
    ("tasks", "data", "message"),
    [
        ([Task("a", "k"), Task("a", "k")], [], "two tasks are named 'a'"),
        ([Task("a", "k", accesses=(("x", R),))], [], "task 'a' uses unknown datum 'x'"),
        ([Task("a", "k", after=("z",))], [], "task 'a' waits for unknown task 'z'"),
        ([Task("a", "k", accesses=(("x", R), ("x", W)))], [Data("x", 1.0)], "names datum 'x' twice"),
        ([], [Data("x", -1.0)], "datum 'x' has -1.0 bytes"),
    ],
)
def test_what_does_not_hold_together_is_named(tasks: list[Task], data: list[Data], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        TaskGraph("g", tasks, data)


def test_problems_that_cannot_be_solved_are_named() -> None:
    graph = TaskGraph("g", [Task("a", "k", accesses=(("x", R),))], [Data("x", 1.0, "moon")])
    with pytest.raises(GraphError, match="datum 'x' lies at 'moon'"):
        Problem(graph, ONE, lambda task, kind: 1.0)
    with pytest.raises(GraphError, match=r"can run task 'a' \(kernel 'k'"):
        Problem(TaskGraph("g", [Task("a", "k")]), ONE, lambda task, kind: None)
    apart = Machine("apart", [Unit("u", "c", "m"), Unit("v", "c", "n")])
    reads = TaskGraph("g", [Task("a", "k", accesses=(("x", R),))], [Data("x", 1.0)])
    with pytest.raises(GraphError, match="from 'm' to 'n', and no link leads there"):
        Problem(reads, apart, lambda task, kind: 1.0)
    with pytest.raises(MachineError, match="has no unit"):
        Machine("empty", [])


@pytest.mark.parametrize("make", [lambda: Planner(0.05), Heft, Peft, LookaheadHeft, lambda: Online(Eager)])
def test_empty_single_and_disconnected_graphs(make: object) -> None:
    scheduler = make()  # type: ignore[operator]
    machine = host_with_accelerators("m", 2, 1, bytes_per_s=1.0)

    def planned(graph: TaskGraph) -> float:
        return float(scheduler.plan(Problem(graph, machine, lambda task, kind: 2.0)).makespan_s)

    assert planned(TaskGraph("empty", [])) == 0.0
    assert planned(TaskGraph("single", [Task("a", "k")])) == 2.0
    assert planned(TaskGraph("apart", [Task(f"t{i}", "k") for i in range(7)])) == 6.0


@pytest.mark.parametrize("family", FAMILIES)
def test_families_make_connected_looking_graphs_of_about_the_size(family: str) -> None:
    problem = random_problem(family, 60, Setting(), 1)
    assert 25 <= problem.tasks <= 66
    assert sum(map(bool, problem.predecessors)) >= 0.5 * problem.tasks or family == "erdos-renyi"
    again = random_problem(family, 60, Setting(), 1)
    assert again.durations == problem.durations
    assert again.predecessors == problem.predecessors
