"""A dispatcher at work on virtual time: event-driven, exact, the same for the same seed.

A unit that takes a task waits until its inputs are there, then computes. Transfers are asked for ahead of time
(`State.fetch`) or when a unit takes a task, and are served by urgency on every link that has a free stream. Each memory
holds one version of a datum. When a unit is lost with its memory, what only lay there is computed again.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from typing import cast

from physical.scheduling.contents import Contents
from physical.scheduling.disturbance import CALM, Disturbance
from physical.scheduling.losing import lose, nowhere
from physical.scheduling.port import Dispatcher, foresight
from physical.scheduling.problem import Problem
from physical.scheduling.recovery import DataLostError, ExecutionError, overwritten
from physical.scheduling.room import HOST_NODE, Drop, Room
from physical.scheduling.trace import Run, Trace
from physical.scheduling.transfers import Transfers

NOW = -math.inf
"""Urgency of what a unit is waiting for."""


class CutOffError(ExecutionError):
    """The execution was not over at the time beyond which nobody cared."""


def simulate(
    problem: Problem,
    dispatcher: Dispatcher,
    *,
    disturbance: Disturbance = CALM,
    prefetch: bool = True,
    cutoff_s: float = math.inf,
) -> Trace:
    """Execute a problem under a dispatcher. Without `prefetch` inputs are moved only once a unit has taken the
    task, and the unit waits for them.

    Raises:
        CutOffError: something is left to do at `cutoff_s`.
        DataLostError: data went with a unit and cannot be computed again.
        ExecutionError: the dispatcher picks what it must not, or leaves work undone.
    """
    return Simulation(problem, dispatcher, disturbance, prefetch=prefetch).run(cutoff_s)


class Simulation:
    """State of one execution; it is the `State` that the dispatcher sees."""

    def __init__(
        self,
        problem: Problem,
        dispatcher: Dispatcher,
        disturbance: Disturbance,
        *,
        prefetch: bool,
    ) -> None:
        self.problem, self.dispatcher, self.disturbance = problem, dispatcher, disturbance
        self.prefetch = prefetch
        self.clock_s = 0.0
        self.events: list[tuple[float, int, str, object]] = []
        self.count = 0
        self.exists = [producer < 0 for producer in problem.producer]
        self.wishes: dict[int, list[tuple[int, float]]] = defaultdict(list)
        self.waiting = [len(before) for before in problem.predecessors]
        self.done = [False] * problem.tasks
        self.contents = Contents(problem, self.done)
        self.told = [False] * problem.tasks
        self.taken: list[int | None] = [None] * problem.units
        self.started: list[float | None] = [None] * problem.units
        self.missing: list[int] = [0] * problem.units
        self.waits_for: dict[tuple[int, int], list[int]] = defaultdict(list)
        self.dead = [False] * problem.units
        self.node_gone = [False] * problem.nodes
        self.epoch = [0] * problem.units
        self.relays = {hop.target for route in problem.routes if route for hop in route[:-1]}
        self.held_back: dict[int, list[int]] = defaultdict(list)
        """Tasks that wait for one that is computed again, beside its successors."""
        self.room: Room | None = None
        """None: every memory has room for everything."""
        if problem.bounded:
            self.room = Room(problem, self.contents, self._evict, self._spill, foresight(dispatcher))
        self.stalled: list[int] = []
        """Units whose results have no room yet."""
        self.drops: list[Drop] = []
        self.finished = 0
        self.runs: list[Run] = []
        self.lost: list[tuple[int, float]] = []
        self.transfers = Transfers(self)
        speed = [min((row[g] for row in problem.durations), default=0.0) for g in range(len(problem.groups))]
        self.asking = sorted(range(problem.units), key=lambda u: (speed[problem.group_of[u]], u))

    # What a dispatcher sees.
    def now_s(self) -> float:
        return self.clock_s

    def alive(self, unit: int) -> bool:
        return not self.dead[unit]

    def running(self, unit: int) -> int | None:
        return self.taken[unit]

    def expected_end_s(self, unit: int) -> float:
        task = self.taken[unit]
        if task is None:
            return self.clock_s
        takes = self.problem.durations[task][self.problem.group_of[unit]]
        began = self.started[unit]
        return max(self.clock_s, (self.clock_s if began is None else began) + takes)

    def present(self, version: int, node: int) -> bool:
        return self.holds(version, node)

    def expected_arrival_s(self, version: int, node: int) -> float:
        if self.holds(version, node):
            return self.clock_s
        source = self.nearest(version, node)
        if source is None:
            return math.inf
        return self.clock_s + self.problem.transfer_s(source, node, self.problem.nbytes[version])

    def fetch(self, version: int, node: int, urgency: float) -> None:
        if self.prefetch and not self.node_gone[node]:
            self.fetch_again(version, node, urgency)

    # The rest is the simulation's own.
    def run(self, cutoff_s: float) -> Trace:
        """From start to end."""
        for loss in self.disturbance.losses:
            self.schedule(loss.at_s, "lost", loss.unit)
        self.dispatcher.begin(self)
        self._tell([task for task, count in enumerate(self.waiting) if count == 0])
        self._act()
        left = self.problem.tasks
        while self.events and left:
            self.clock_s = self.events[0][0]
            if self.clock_s >= cutoff_s:
                raise CutOffError(f"dispatcher '{self.dispatcher.name}' is not done at {cutoff_s:g} s")
            freed: list[int] = []
            while self.events and self.events[0][0] == self.clock_s:
                _, _, what, payload = heapq.heappop(self.events)
                if what == "ended":
                    unit, epoch = cast("tuple[int, int]", payload)
                    if epoch == self.epoch[unit]:
                        freed += self._ended(unit)
                elif what == "arrived":
                    self.transfers.arrived(payload)  # type: ignore[arg-type]
                else:
                    freed += lose(self, cast("int", payload))
            self._tell([task for task in freed if not self.waiting[task] and not self.done[task]])
            self._act()
            left = self.problem.tasks - self.finished
        if left:
            self._explain()
            raise ExecutionError(
                f"dispatcher '{self.dispatcher.name}' left {left} of {self.problem.tasks} tasks of graph "
                f"'{self.problem.graph.name}' undone" + ("" if not all(self.dead) else ": every unit is lost")
            )
        stolen = getattr(self.dispatcher, "stolen", 0)
        return Trace(
            self.problem,
            self.dispatcher.name,
            tuple(self.runs),
            tuple(self.transfers.moves),
            tuple(self.lost),
            int(stolen),
            tuple(self.drops),
        )

    def _explain(self) -> None:
        """Raise DataLostError if something waits for what is nowhere and will not be made again."""
        for (version, _), units in self.waits_for.items():
            producer = self.problem.producer[version]
            if units and nowhere(self, version) and (producer < 0 or self.done[producer]):
                raise overwritten(self.problem, version)

    def schedule(self, at_s: float, what: str, payload: object) -> None:
        """Put an event into the future."""
        self.count += 1
        heapq.heappush(self.events, (at_s, self.count, what, payload))

    def holds(self, version: int, node: int) -> bool:
        """Is this version in this memory?"""
        return self.contents.holds(version, node)

    def nearest(self, version: int, node: int) -> int | None:
        """The memory from which an idle route brings it first; None if no memory has it."""
        return self.contents.nearest(version, node)

    def wanted_by(self, version: int) -> int:
        """The first task that reads a version."""
        return self.contents.first_reader(version)

    def fetch_again(self, version: int, node: int, urgency: float) -> None:
        """Request a version, now or once it exists."""
        if self.holds(version, node):
            return
        if self.nearest(version, node) is None:
            self.wishes[version].append((node, urgency))
        else:
            self.transfers.request(version, node, urgency)

    def store(self, version: int, node: int) -> None:
        """A version has arrived in a memory, and counts unless a newer one is there."""
        if self.contents.at(self.problem.version_data[version], node) <= version:
            self._put(version, node)

    def _put(self, version: int, node: int) -> None:
        """A version is complete in a memory, in place of an older one: those who wait for it there go on."""
        before = self.contents.at(self.problem.version_data[version], node)
        if self.room is not None and 0 <= before != version:
            self.drops.append(Drop(before, node, self.clock_s))
        self.contents.put(version, node)
        for unit in self.waits_for.pop((version, node), ()):
            self.missing[unit] -= 1
            if not self.missing[unit]:
                self._compute(unit)

    def _tell(self, tasks: list[int]) -> None:
        tasks = [task for task in dict.fromkeys(tasks) if not self.told[task]]
        for task in tasks:
            self.told[task] = True
        if tasks:
            self.dispatcher.ready(tasks)

    def _evict(self, version: int, node: int) -> None:
        self.contents.evict(version, node)
        self.drops.append(Drop(version, node, self.clock_s))

    def _spill(self, version: int, node: int) -> None:  # noqa: ARG002 - it is the only one
        self.transfers.request(version, HOST_NODE, NOW)

    def _act(self) -> None:
        if self.room is not None:
            self.room.retry(self._gather)
            stalled, self.stalled = self.stalled, []
            for unit in stalled:
                self._compute(unit)
        for unit in self.asking:
            if self.taken[unit] is None and not self.dead[unit]:
                task = self.dispatcher.pick(unit)
                if task is not None:
                    self._take(unit, task)
        self.transfers.start()

    def _take(self, unit: int, task: int) -> None:
        problem = self.problem
        if self.done[task] or self.waiting[task] or task in self.taken:
            raise ExecutionError(
                f"dispatcher '{self.dispatcher.name}' picked task {task}, which is not ready"
            )
        if problem.durations[task][problem.group_of[unit]] == math.inf:
            raise ExecutionError(
                f"dispatcher '{self.dispatcher.name}' picked task {task} for a unit that cannot run it"
            )
        self.taken[unit] = task
        self.started[unit] = None
        self._gather(unit, task)

    def _gather(self, unit: int, task: int) -> None:
        """Bring the task's inputs, once its memory admits it."""
        problem = self.problem
        node = problem.node_of[unit]
        if self.room is not None and not self.room.admit(unit, task):
            return
        absent = [version for version in problem.inputs[task] if not self.holds(version, node)]
        self.missing[unit] = len(absent)
        for version in absent:
            self.waits_for[version, node].append(unit)
            self.fetch_again(version, node, NOW)
        if not absent:
            self._compute(unit)

    def _compute(self, unit: int) -> None:
        task = self.taken[unit]
        if task is None or self.started[unit] is not None:
            return
        if self.room is not None and not self.room.begin(unit, task):
            self.stalled.append(unit)
            return
        self.started[unit] = self.clock_s
        takes = self.problem.durations[task][self.problem.group_of[unit]]
        takes *= self.disturbance.duration_factor(task)
        self.schedule(self.disturbance.end_s(unit, self.clock_s, takes), "ended", (unit, self.epoch[unit]))

    def _ended(self, unit: int) -> list[int]:
        """A unit is done; the successors that wait for one task less."""
        task, began = self.taken[unit], self.started[unit]
        if task is None or began is None:
            return []
        problem, node = self.problem, self.problem.node_of[unit]
        self.runs.append(Run(task, unit, began, self.clock_s))
        if self.room is not None:
            self.room.release(unit)
        self.taken[unit] = self.started[unit] = None
        self.done[task] = True
        self.finished += 1
        for version in problem.outputs[task]:
            self.exists[version] = True
            self._put(version, node)
            for wanted, urgency in self.wishes.pop(version, ()):
                self.transfers.request(version, wanted, urgency)
        self.dispatcher.ended(task, unit, self.clock_s - began)
        for follower in (*problem.successors[task], *self.held_back.get(task, ())):
            self.waiting[follower] -= 1
        after = [*problem.successors[task], *self.held_back.pop(task, ())]
        return [f for f in after if not self.waiting[f]]


__all__ = ["CutOffError", "DataLostError", "ExecutionError", "simulate"]
