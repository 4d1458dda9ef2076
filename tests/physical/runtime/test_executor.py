"""Real units carry out what dispatchers decide: results, rules, losses."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from physical.runtime.executor import Outcome, StoppedError, TaskFailedError, execute
from physical.runtime.kernels import Kernels
from physical.runtime.process import ProcessUnit
from physical.runtime.units import PROCESS, THREAD, Units
from physical.scheduling.graph import Access, Data, GraphError, Task, TaskGraph
from physical.scheduling.machine import Hop, Link, Machine, MachineError, Unit
from physical.scheduling.problem import Problem
from physical.scheduling.simulation import ExecutionError
from physical.scheduling.trace import check
from tests.examples import some_slow
from tests.physical.runtime import work

HERE = "tests.physical.runtime.work"
KERNELS = Kernels(
    {
        (kernel, kind): f"{HERE}:{kernel}"
        for kernel in ("mix", "split", "fail", "die_once", "wait", "text")
        for kind in (THREAD, PROCESS)
    }
)


def machine(threads: int, processes: int) -> Machine:
    units = [Unit(f"cpu{i}", THREAD, "host") for i in range(threads)]
    units += [Unit(f"process{i}", PROCESS, f"process{i}") for i in range(processes)]
    links, hops = [], []
    for i in range(processes):
        links.append(Link(f"pipe{i}", 1e9, 1e-4))
        hops += [Hop("host", f"process{i}", (f"pipe{i}",)), Hop(f"process{i}", "host", (f"pipe{i}",))]
    return Machine("test", units, links, hops)


@pytest.fixture(scope="module")
def mixed() -> Iterator[Units]:
    """A thread and two processes."""
    with Units(machine(1, 2)) as units:
        yield units


def random_graph(seed: int, tasks: int = 30, data: int = 8) -> tuple[TaskGraph, dict[str, Any]]:
    rng = random.Random(seed)
    names = [f"d{i}" for i in range(data)]
    made = []
    for number in range(tasks):
        chosen = rng.sample(names, rng.randint(1, 4))
        outputs = min(len(chosen), rng.choice((1, 1, 2)))
        accesses = [
            (name, rng.choice((Access.WRITE, Access.READ_WRITE)) if i < outputs else Access.READ)
            for i, name in enumerate(chosen)
        ]
        rng.shuffle(accesses)
        made.append(Task(f"t{number}", "split" if outputs == 2 else "mix", accesses=tuple(accesses)))
    values = {name: np.arange(64.0) + i for i, name in enumerate(names)}
    return TaskGraph(f"random{seed}", made, [Data(name, 512.0, "host") for name in names]), values


def serial(graph: TaskGraph, values: dict[str, Any]) -> dict[str, Any]:
    now = dict(values)
    for task in graph.tasks:
        reads = [now[name] for name, access in task.accesses if access is not Access.WRITE]
        writes = [name for name, access in task.accesses if access is not Access.READ]
        result = getattr(work, task.kernel)(*reads)
        now.update(zip(writes, result if len(writes) > 1 else [result], strict=True))
    return now


class Passive:
    """First come, first served: the least that a dispatcher can do, kept here so that these tests stand alone."""

    def __init__(self, *, only: dict[str, str] | None = None, prefetch: bool = False) -> None:
        self.name = "passive"
        self._only, self._prefetch = only or {}, prefetch
        self._queue: list[int] = []
        self.lost_units: list[int] = []

    def begin(self, state: Any) -> None:
        self._state = state

    def ready(self, tasks: Any) -> None:
        self._queue += tasks
        if self._prefetch:
            for task in tasks:
                for version in self._state.problem.inputs[task]:
                    for node in range(self._state.problem.nodes):
                        self._state.fetch(version, node, 0.0)

    def pick(self, unit: int) -> int | None:
        problem = self._state.problem
        for task in self._queue:
            wanted = self._only.get(problem.graph.tasks[task].name)
            able = problem.durations[task][problem.group_of[unit]] < float("inf")
            if able and wanted in {None, problem.machine.units[unit].name}:
                self._queue.remove(task)
                return task
        return None

    def ended(self, task: int, unit: int, took_s: float) -> None:
        assert took_s >= 0.0

    def lost(self, unit: int, withdrawn: Any) -> None:
        self.lost_units.append(unit)
        self._queue = [task for task in self._queue if task not in set(withdrawn)]


def go(
    graph: TaskGraph, values: dict[str, Any], units: Units, dispatcher: Any = None, **options: Any
) -> Outcome:
    problem = Problem(graph, units.machine, lambda task, kind: 1e-3)
    wanted = tuple(datum.name for datum in graph.data)
    dispatcher = dispatcher or Passive()
    outcome = execute(problem, dispatcher, units, KERNELS, values, wanted=wanted, **options)
    check(outcome.trace)
    return outcome


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("seed", some_slow(range(6), 0, 1))
def test_results_are_those_of_one_task_after_the_other(mixed: Units, seed: int, prefetch: bool) -> None:
    graph, values = random_graph(seed)
    only = {"t1": "cpu0", "t5": "process0", "t9": "process1"}
    outcome = go(graph, values, mixed, Passive(only=only, prefetch=prefetch), prefetch=prefetch)
    expected = serial(graph, values)
    assert outcome.results.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(outcome.results[name], value)
    assert {run.unit for run in outcome.trace.runs} == {0, 1, 2}
    assert outcome.inputs_there + outcome.inputs_awaited > 0
    assert 0.0 <= outcome.prefetch_hits <= 1.0


def test_inputs_that_were_fetched_ahead_are_hits(mixed: Units, tmp_path: Path) -> None:
    flag = tmp_path / "go"
    tasks = [
        Task("make", "mix", accesses=(("a", Access.READ), ("b", Access.WRITE))),
        Task("hold", "wait", accesses=(("flag", Access.READ), ("c", Access.WRITE)), after=("make",)),
        Task("use", "mix", accesses=(("b", Access.READ), ("d", Access.WRITE)), after=("hold",)),
    ]
    graph = TaskGraph("hits", tasks, [Data(n, 512.0) for n in ("a", "b", "c", "d", "flag")])
    values = {"a": np.arange(64.0), "flag": str(flag)}
    only = {"make": "cpu0", "hold": "cpu0", "use": "process1"}

    class Fetching(Passive):
        def ended(self, task: int, unit: int, took_s: float) -> None:
            state = self._state
            if state.problem.graph.tasks[task].name == "make":
                state.fetch(
                    state.problem.outputs[task][0], state.problem.machine.nodes.index("process1"), 0.0
                )
                threading.Thread(target=self._open, daemon=True).start()

        def _open(self) -> None:
            version = self._state.problem.outputs[0][0]
            while not self._state.present(version, self._state.problem.machine.nodes.index("process1")):
                pass
            flag.write_text("go")

    problem = Problem(graph, mixed.machine, lambda task, kind: 1e-3)
    outcome = execute(problem, Fetching(only=only), mixed, KERNELS, values, wanted=("d",))
    assert (outcome.inputs_there, outcome.inputs_awaited) == (1, 0)
    assert outcome.prefetch_hits == 1.0
    np.testing.assert_array_equal(outcome.results["d"], work.mix(work.mix(values["a"])))
    held = execute(problem, Fetching(only=only), mixed, KERNELS, values, wanted=("d",), prefetch=True)
    assert held.trace.moved_bytes == 512.0
    passive = execute(problem, Passive(only=only), mixed, KERNELS, values, wanted=("d",), prefetch=False)
    assert (passive.inputs_there, passive.inputs_awaited) == (0, 1)
    assert passive.waited_s > 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))]
)
def test_what_went_with_a_killed_process_is_computed_again(seed: int, tmp_path: Path) -> None:
    graph, values = random_graph(seed, tasks=20)
    flag = tmp_path / "died"
    tasks = [*graph.tasks]
    deadly = Task("deadly", "die_once", accesses=(("flag", Access.READ), ("d0", Access.READ_WRITE)))
    tasks.insert(12, deadly)
    graph = TaskGraph("deadly", tasks, [*graph.data, Data("flag", 64.0, "host")])
    values = {**values, "flag": str(flag)}
    dispatcher = Passive(only={})
    with Units(machine(1, 2)) as units:
        problem = Problem(
            graph,
            units.machine,
            lambda task, kind: None if task.kernel == "die_once" and kind == THREAD else 1e-3,
        )
        outcome = execute(
            problem, dispatcher, units, KERNELS, values, wanted=tuple(d.name for d in graph.data)
        )
    check(outcome.trace)
    assert len(dispatcher.lost_units) == 1
    assert len(outcome.trace.lost) == 1
    expected = serial(graph, values)
    for name in values:
        if name != "flag":
            np.testing.assert_array_equal(outcome.results[name], expected[name])


@pytest.mark.slow
def test_values_at_home_in_a_lost_process_come_back_from_here(tmp_path: Path) -> None:
    flag = tmp_path / "died"
    tasks = [
        Task("deadly", "die_once", accesses=(("flag", Access.READ), ("a", Access.READ), ("b", Access.WRITE))),
        Task("after", "mix", accesses=(("a", Access.READ), ("b", Access.READ), ("c", Access.WRITE))),
    ]
    graph = TaskGraph(
        "home", tasks, [Data("a", 512.0, "process0"), Data("b", 512.0), Data("c", 512.0), Data("flag", 9.0)]
    )
    values = {"a": np.arange(64.0), "flag": str(flag)}
    with Units(machine(1, 1)) as units:
        problem = Problem(graph, units.machine, lambda task, kind: 1e-3)
        first = {"deadly": "process0"}
        dispatcher = Passive(only=first)
        dispatcher.lost = lambda unit, withdrawn: first.clear()  # type: ignore[method-assign]
        outcome = execute(problem, dispatcher, units, KERNELS, values, wanted=("c",))
    made = work.mix(values["a"])
    np.testing.assert_array_equal(outcome.results["c"], work.mix(values["a"], made))


def test_a_task_that_nobody_can_do_any_more_is_named(tmp_path: Path) -> None:
    graph = TaskGraph(
        "alone",
        [Task("deadly", "die_once", accesses=(("flag", Access.READ), ("b", Access.WRITE)))],
        [Data("flag", 9.0), Data("b", 512.0)],
    )
    with Units(machine(1, 1)) as units:
        problem = Problem(graph, units.machine, lambda task, kind: 1e-3 if kind == PROCESS else None)
        with pytest.raises(ExecutionError, match="every unit that can do task 'deadly' is lost"):
            execute(problem, Passive(), units, KERNELS, {"flag": str(tmp_path / "died")}, wanted=("b",))


def test_a_process_killed_from_outside_is_an_event(tmp_path: Path) -> None:
    graph, values = random_graph(5, tasks=12)
    with Units(machine(1, 1)) as units:
        process = units[1]
        assert isinstance(process, ProcessUnit)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        outcome = go(graph, values, units)
    np.testing.assert_array_equal(outcome.results["d0"], serial(graph, values)["d0"])


@pytest.mark.parametrize("unit", ["cpu0", "process1"])
def test_a_kernel_that_raises_is_named_with_its_unit(mixed: Units, unit: str) -> None:
    graph = TaskGraph(
        "bad",
        [Task("seven", "fail", accesses=(("a", Access.READ), ("b", Access.WRITE)))],
        [Data("a", 8.0), Data("b", 8.0)],
    )
    problem = Problem(graph, mixed.machine, lambda task, kind: 1e-3)
    with pytest.raises(
        TaskFailedError, match=rf"task 'seven' .* on unit '{unit}': ArithmeticError: seven is no"
    ):
        execute(problem, Passive(only={"seven": unit}), mixed, KERNELS, {"a": np.zeros(1)}, wanted=("b",))


def test_a_value_that_is_missing_is_named(mixed: Units) -> None:
    graph, values = random_graph(1)
    del values["d3"]
    with pytest.raises(ExecutionError, match="datum 'd3' is read, and no value was given"):
        go(graph, values, mixed)


def test_a_wanted_datum_that_is_unknown_is_named(mixed: Units) -> None:
    graph, values = random_graph(1)
    problem = Problem(graph, mixed.machine, lambda task, kind: 1e-3)
    with pytest.raises(GraphError, match="no datum 'x'"):
        execute(problem, Passive(), mixed, KERNELS, values, wanted=("x",))


def test_a_dispatcher_that_leaves_work_undone_is_named(mixed: Units) -> None:
    graph, values = random_graph(1)
    lazy = Passive()
    lazy.pick = lambda unit: None  # type: ignore[method-assign]
    with pytest.raises(ExecutionError, match="dispatcher 'passive' left 30 of 30"):
        go(graph, values, mixed, lazy)


def test_a_stop_ends_it(tmp_path: Path) -> None:
    graph = TaskGraph(
        "long",
        [Task("wait", "wait", accesses=(("flag", Access.READ), ("b", Access.WRITE)))],
        [Data("flag", 9.0), Data("b", 8.0)],
    )
    stop = threading.Event()
    with Units(machine(0, 1)) as units:
        problem = Problem(graph, units.machine, lambda task, kind: 1e-3)

        class Stopping(Passive):
            def pick(self, unit: int) -> int | None:
                stop.set()
                return super().pick(unit)

        values = {"flag": str(tmp_path / "never")}
        with pytest.raises(StoppedError):
            execute(problem, Stopping(), units, KERNELS, values, stop=stop)
        with pytest.raises(ExecutionError, match="every unit that can do task 'wait' is lost"):
            execute(problem, Passive(), units, KERNELS, values)


def test_values_of_any_kind_go_between_processes(mixed: Units) -> None:
    graph = TaskGraph(
        "words",
        [
            Task("sum", "text", accesses=(("a", Access.READ), ("b", Access.WRITE))),
        ],
        [Data("a", 8.0), Data("b", 8.0)],
    )
    problem = Problem(graph, mixed.machine, lambda task, kind: 1e-3)
    outcome = execute(
        problem, Passive(only={"sum": "process0"}), mixed, KERNELS, {"a": np.ones((3, 4)).T}, wanted=("b",)
    )
    assert outcome.results == {"b": "12.000000"}


def test_progress_is_told_to_the_end(mixed: Units) -> None:
    graph, values = random_graph(2)
    seen: list[tuple[int, int]] = []
    go(graph, values, mixed, on_done=lambda done, count: seen.append((done, count)))
    assert seen[-1] == (30, 30)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_units_that_do_not_fit_their_memory_are_refused() -> None:
    with pytest.raises(MachineError, match="a thread computes on 'host'"):
        Units(Machine("odd", [Unit("cpu0", THREAD, "elsewhere")]))
    with pytest.raises(MachineError, match="unknown kind 'quantum'"):
        Units(Machine("odd", [Unit("q0", "quantum", "q")]))
    with pytest.raises(GraphError, match=r"package\.module:function"):
        Kernels({("mix", THREAD): "nothing"})
    with pytest.raises(GraphError, match="no function does kernel 'mixx'"):
        KERNELS.name_of("mixx", THREAD)
