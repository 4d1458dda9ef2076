"""A dispatcher at work on real units: the same decisions as in simulation, on the wall clock.

    with build_units(machine) as units:
        outcome = execute(problem, dispatcher, units, kernels, values)

One thread decides. Units compute, carriers copy values between memories, and both report events to it. A value is
written once and never changed, so that copies stay right, and what went with a lost unit is computed again from what
is left; values that nobody needs any more are dropped. Transfers are asked for ahead of need (`State.fetch`) or once a
unit has taken a task, and wait for a free stream of each link on their way, the most urgent first.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from physical.runtime.kernels import Kernels
from physical.runtime.ledger import Ledger
from physical.runtime.port import Arrived, Ended, Event, Failed, Lost, MemoryLostError, Order
from physical.runtime.transfers import NOW, Transfers
from physical.runtime.units import HOST, Units
from physical.scheduling.models import PerformanceModel
from physical.scheduling.port import Dispatcher, foresight
from physical.scheduling.problem import Problem
from physical.scheduling.room import HOST_NODE, Drop, Room
from physical.scheduling.simulation import ExecutionError
from physical.scheduling.trace import Run, Trace

SWITCH_S = 5e-4
"""While an execution runs, how long a thread that computes in Python may keep the one that decides waiting."""
WAIT_S = 0.25
"""How often a quiet execution looks whether it is to stop."""


class TaskFailedError(ExecutionError):
    """A kernel raised; the message names task, kernel, unit and the reason."""


class StoppedError(ExecutionError):
    """The execution was told to stop."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an execution gave."""

    trace: Trace
    results: Mapping[str, Any]
    """The last value of each datum that was asked for."""
    elapsed_s: float
    """From the start until all results were here."""
    inputs_there: int
    """Values from other memories that were there before a unit took the task: prefetch hits."""
    inputs_awaited: int
    """Those that a unit had to wait for."""
    waited_s: float
    """Unit time spent waiting for them."""

    @property
    def prefetch_hits(self) -> float:
        """Share of values from other memories that were there in time; 1 where there were none."""
        count = self.inputs_there + self.inputs_awaited
        return self.inputs_there / count if count else 1.0


def execute(
    problem: Problem,
    dispatcher: Dispatcher,
    units: Units,
    kernels: Kernels,
    values: Mapping[str, Any],
    *,
    wanted: tuple[str, ...] = (),
    prefetch: bool = True,
    stop: threading.Event | None = None,
    on_done: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Execute a graph. `values`: of each datum that is read before it is written. `wanted`: data whose last value is
    returned. `on_done`: called with (tasks done, tasks in all).

    Raises:
        TaskFailedError: a kernel raised.
        StoppedError: `stop` was set.
        ExecutionError: a value is missing at the start, every unit that can do a task is lost, or the dispatcher
            picks what it must not or leaves work undone.
    """
    return _Execution(
        problem, dispatcher, units, kernels, values=values, wanted=wanted, prefetch=prefetch
    ).run(stop, on_done)


def learn(model: PerformanceModel, trace: Trace) -> None:
    """Teach a model how long the tasks of an execution took."""
    problem = trace.problem
    for run in trace.runs:
        if run.completed:
            task = problem.graph.tasks[run.task]
            model.observe(
                task.kernel, problem.machine.units[run.unit].kind, task.size, run.end_s - run.start_s
            )


class _Execution:
    """State of one execution; it is the `State` that the dispatcher sees."""

    def __init__(
        self,
        problem: Problem,
        dispatcher: Dispatcher,
        units: Units,
        kernels: Kernels,
        *,
        values: Mapping[str, Any],
        wanted: tuple[str, ...],
        prefetch: bool,
    ) -> None:
        self.problem, self.dispatcher, self.units, self.kernels = problem, dispatcher, units, kernels
        self.values, self.prefetch = values, prefetch
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.ledger = Ledger(problem, wanted)
        self.transfers = Transfers(problem, self.ledger, units, self.inbox.put)
        if problem.bounded:
            self.transfers.room = Room(problem, self.ledger, self._evict, self._spill, foresight(dispatcher))
        self.room = self.transfers.room
        self.drops: list[Drop] = []
        self.taken: list[int | None] = [None] * problem.units
        self.took_s = [0.0] * problem.units
        self.began: list[float | None] = [None] * problem.units
        self.dead = [False] * problem.units
        self.told: set[int] = set()
        self.runs: list[Run] = []
        self.losses: list[tuple[int, float]] = []
        self.there = self.awaited = 0
        self.waited_s = 0.0
        self._place(values)
        self.origin_s = time.perf_counter()

    # ---- what a dispatcher sees ----

    def now_s(self) -> float:
        return time.perf_counter() - self.origin_s

    def alive(self, unit: int) -> bool:
        return not self.dead[unit]

    def running(self, unit: int) -> int | None:
        return self.taken[unit]

    def expected_end_s(self, unit: int) -> float:
        task, now_s = self.taken[unit], self.now_s()
        if task is None:
            return now_s
        began_s = self.began[unit]
        takes_s = self.problem.durations[task][self.problem.group_of[unit]]
        return max(now_s, (now_s if began_s is None else began_s) + takes_s)

    def present(self, version: int, node: int) -> bool:
        return self.ledger.holds(version, node)

    def expected_arrival_s(self, version: int, node: int) -> float:
        if self.ledger.holds(version, node):
            return self.now_s()
        source = self.ledger.nearest(version, node)
        if source is None:
            return float("inf")
        return self.now_s() + self.problem.transfer_s(source, node, self.problem.nbytes[version])

    def fetch(self, version: int, node: int, urgency: float) -> None:
        if self.prefetch:
            self.transfers.want(version, node, urgency)

    # ---- the loop ----

    def run(self, stop: threading.Event | None, on_done: Callable[[int, int], None] | None) -> Outcome:
        """From start to end; units are left idle, also where it fails."""
        self.units.connect(self.inbox.put)
        interval_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            self.dispatcher.begin(self)
            self._tell()
            self._act()
            while self.ledger.left:
                self._check_stuck()
                for event in self._events(stop):
                    self._happened(event)
                self._tell()
                self._act()
                if on_done is not None:
                    on_done(self.problem.tasks - self.ledger.left, self.problem.tasks)
            results = self._results()
            elapsed_s = self.now_s()
        finally:
            sys.setswitchinterval(interval_s)
            self.transfers.close()
            self.units.settle([u for u, task in enumerate(self.taken) if task is not None])
        trace = Trace(
            self.problem,
            self.dispatcher.name,
            tuple(self.runs),
            tuple(self.transfers.moves(self.origin_s)),
            tuple(self.losses),
            int(getattr(self.dispatcher, "stolen", 0)),
            tuple(self.drops),
        )
        return Outcome(trace, results, elapsed_s, self.there, self.awaited, self.waited_s)

    def _place(self, values: Mapping[str, Any]) -> None:
        """Initial values into the memories where they are at home."""
        graph = self.problem.graph
        for index, datum in enumerate(graph.data):
            if datum.name in values:
                with contextlib.suppress(MemoryLostError):  # then its loss is the first event
                    self.units.memory(self.problem.home[index]).put(index, values[datum.name])
            elif self.ledger.needed(index):
                raise ExecutionError(
                    f"graph '{graph.name}': datum '{datum.name}' is read, and no value was given"
                )

    def _place_again(self, version: int) -> None:
        """An initial value, whose memory is gone, into this process's memory."""
        datum, machine = self.problem.graph.data[version], self.problem.machine
        if HOST not in machine.nodes:
            raise ExecutionError(
                f"datum '{datum.name}' went with its memory, and machine '{machine.name}' has no host"
            )
        node = machine.nodes.index(HOST)
        self.units.memory(node).put(version, self.values[datum.name])
        self.ledger.came(version, node)

    def _events(self, stop: threading.Event | None) -> list[Event]:
        """At least one, and all that wait."""
        while True:
            if stop is not None and stop.is_set():
                raise StoppedError(f"graph '{self.problem.graph.name}': stopped")
            try:
                found = [self.inbox.get(timeout=WAIT_S)]
            except queue.Empty:
                continue
            while not self.inbox.empty():
                found.append(self.inbox.get())
            return found

    def _happened(self, event: Event) -> None:
        if isinstance(event, Ended):
            self._ended(event)
        elif isinstance(event, Arrived):
            self.transfers.arrived(event)
            self._start_waiting()
        elif isinstance(event, Lost):
            self._lost(event)
        else:
            self._failed(event)

    def _tell(self) -> None:
        fresh = [task for task in self.ledger.ready() if task not in self.told and task not in self.taken]
        self.told.update(fresh)
        if fresh:
            self.dispatcher.ready(fresh)

    def _evict(self, version: int, node: int) -> None:
        """A copy gives way to another one."""
        self.ledger.evict(version, node)
        self.units.memory(node).drop(version)
        self.drops.append(Drop(version, node, self.now_s()))

    def _spill(self, version: int, node: int) -> None:  # noqa: ARG002 - it is the only one
        self.transfers.want(version, HOST_NODE, NOW)

    def _act(self) -> None:
        if self.room is not None:
            self.room.retry(self._gather)
            self._start_waiting()
        for unit in self.units.fastest_first(self.problem):
            if self.taken[unit] is None and not self.dead[unit]:
                task = self.dispatcher.pick(unit)
                if task is not None:
                    self._take(unit, task)
        self.transfers.start()

    def _take(self, unit: int, task: int) -> None:
        if task not in self.told or task in self.taken or self.ledger.done[task]:
            raise ExecutionError(
                f"dispatcher '{self.dispatcher.name}' picked task {task}, which is not ready"
            )
        self.taken[unit], self.began[unit] = task, None
        self.told.discard(task)
        self.took_s[unit] = self.now_s()
        self._gather(unit, task)

    def _gather(self, unit: int, task: int) -> None:
        """Bring the task's inputs, once its memory admits it."""
        problem, node = self.problem, self.problem.node_of[unit]
        if self.room is not None and not self.room.admit(unit, task):
            return
        for version in problem.inputs[task]:
            if self.ledger.holds(version, node):
                self.there += self.ledger.came_from_elsewhere(version, node)
            else:
                self.awaited += 1
                self.transfers.need(version, node)
        self._start(unit)

    def _start_waiting(self) -> None:
        for unit, task in enumerate(self.taken):
            if task is not None and self.began[unit] is None:
                self._start(unit)

    def _start(self, unit: int) -> None:
        """Compute, if all inputs are there."""
        problem, task = self.problem, self.taken[unit]
        node = problem.node_of[unit]
        if task is None or (self.room is not None and self.room.waits(unit)):
            return
        if not all(self.ledger.holds(v, node) for v in problem.inputs[task]):
            return
        if self.room is not None and not self.room.begin(unit, task):
            return
        self.began[unit] = self.now_s()
        self.waited_s += self.now_s() - self.took_s[unit]
        kind = problem.machine.units[unit].kind
        function = self.kernels.name_of(problem.graph.tasks[task].kernel, kind)
        self.units[unit].compute(Order(task, function, problem.inputs[task], problem.outputs[task]))

    def _ended(self, event: Ended) -> None:
        unit, task = event.unit, event.task
        if self.taken[unit] != task:
            return  # of a unit that was lost meanwhile
        began_s, ended_s = event.began_s - self.origin_s, event.ended_s - self.origin_s
        self.runs.append(Run(task, unit, began_s, ended_s))
        self.taken[unit] = self.began[unit] = None
        self._release(unit)
        for version in self.ledger.finish(task, self.problem.node_of[unit]):
            self._drop(version)
        self.transfers.exist(self.problem.outputs[task])
        self.dispatcher.ended(task, unit, ended_s - began_s)

    def _drop(self, version: int) -> None:
        """Nobody needs it: forget it everywhere."""
        for node in self.ledger.forget(version):
            self.units.memory(node).drop(version)
            if self.room is not None:
                self.drops.append(Drop(version, node, self.now_s()))

    def _release(self, unit: int) -> None:
        """The unit's task needs no room any more."""
        if self.room is not None:
            self.room.release(unit)

    def _failed(self, event: Failed) -> None:
        self.taken[event.unit] = None
        task = self.problem.graph.tasks[event.task]
        unit = self.problem.machine.units[event.unit]
        raise TaskFailedError(
            f"task '{task.name}' (kernel '{task.kernel}') failed on unit '{unit.name}': {event.reason}"
        )

    def _lost(self, event: Lost) -> None:
        """Go on without a unit; what only it had is computed again."""
        unit = event.unit
        if self.dead[unit]:
            return
        self.dead[unit] = True
        now_s = self.now_s()
        self.losses.append((unit, now_s))
        gone: set[int] = set()
        task, began_s = self.taken[unit], self.began[unit]
        if task is not None:
            gone.add(task)
            if began_s is not None:
                self.runs.append(Run(task, unit, began_s, now_s, completed=False))
            self.taken[unit] = self.began[unit] = None
        self._release(unit)
        node = self.problem.node_of[unit]
        if all(self.dead[u] for u in range(self.problem.units) if self.problem.node_of[u] == node):
            self.transfers.lose(node)
            for version in self.ledger.lose(node):
                self._place_again(version)
        for other, waiting in enumerate(self.taken):  # inputs that they wait for may be gone too
            if waiting is not None and self.began[other] is None and not self.ledger.is_ready(waiting):
                gone.add(waiting)
                self.taken[other] = None
                self._release(other)
        gone |= {t for t in self.told if not self.ledger.is_ready(t)}
        self.told -= gone
        self.dispatcher.lost(unit, sorted(gone))

    def _check_stuck(self) -> None:
        """Raises ExecutionError where nothing is under way and nothing will be."""
        if any(task is not None for task in self.taken) or self.transfers.busy:
            return
        problem, left = self.problem, self.ledger.left
        graph = problem.graph
        able = {problem.group_of[u] for u in range(problem.units) if not self.dead[u]}
        for task in self.ledger.ready():
            if not any(problem.durations[task][group] < float("inf") for group in able):
                raise ExecutionError(
                    f"graph '{graph.name}': every unit that can do task '{graph.tasks[task].name}' is lost"
                )
        raise ExecutionError(
            f"dispatcher '{self.dispatcher.name}' left {left} of {problem.tasks} tasks of graph '{graph.name}' undone"
        )

    def _results(self) -> dict[str, Any]:
        """Last values of the data that were asked for, brought to this process."""
        graph = self.problem.graph
        found = {}
        for version in sorted(self.ledger.wanted):
            name = graph.data[graph.versions[version].data].name
            held = self.ledger.holders(version)
            if not held:
                raise ExecutionError(f"datum '{name}' is nowhere: it is neither given nor written")
            found[name] = self.units.memory(held[0]).get(version)
        return found
