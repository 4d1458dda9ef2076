"""One graph on one machine, flattened into arrays for tight loops.

Everything is an index: tasks, versions, units, nodes, links. Units of one kind on one memory node are
interchangeable and form a *group*.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from physical.scheduling.graph import GraphError, Task, TaskGraph
from physical.scheduling.machine import Machine

Durations = Callable[[Task, str], float | None]
"""(task, kind of unit) -> seconds expected, None where that kind cannot run it."""


@dataclass(frozen=True, slots=True)
class FlatHop:
    """A hop by indices."""

    source: int
    target: int
    links: tuple[int, ...]
    """Links with a bound on streams; the others never make a transfer wait."""
    latency_s: float
    s_per_byte: float

    def takes_s(self, nbytes: float) -> float:
        """Time of one transfer."""
        return self.latency_s + nbytes * self.s_per_byte


@dataclass(frozen=True, slots=True)
class Group:
    """Interchangeable units."""

    kind: str
    node: int
    units: tuple[int, ...]


class TaskTooLargeError(GraphError):
    """What a task reads and writes fits into the memory of no unit that can run it."""

    def __init__(
        self, graph: str, task: str, unit: str, *, needed_bytes: float, available_bytes: float
    ) -> None:
        """`unit`: the one with the largest memory of those that could run it."""
        super().__init__(
            f"graph '{graph}': task '{task}' needs {needed_bytes:,.0f} bytes for what it reads and writes, and unit "
            f"'{unit}', the roomiest that can run it, has {available_bytes:,.0f}: raise the bound, or split the task"
        )
        self.task, self.unit = task, unit
        self.needed_bytes, self.available_bytes = needed_bytes, available_bytes


class Problem:
    """Flat view of (graph, machine, durations). Read-only.

    Raises:
        TaskTooLargeError: a task whose values fit into the memory of no unit that can run it.
        GraphError: a task that no unit can run, a bounded memory that cannot be emptied, or a datum whose home is no node of the machine or from
            which a unit that could need it cannot be reached.
    """

    def __init__(self, graph: TaskGraph, machine: Machine, durations: Durations) -> None:
        self.graph, self.machine = graph, machine
        node_index = {node: i for i, node in enumerate(machine.nodes)}
        link_index = {link.name: i for i, link in enumerate(machine.links)}
        self.nodes = len(machine.nodes)
        self.units = len(machine.units)
        self.streams = tuple(link.streams for link in machine.links)
        groups: dict[tuple[str, int], list[int]] = {}
        for number, unit in enumerate(machine.units):
            groups.setdefault((unit.kind, node_index[unit.node]), []).append(number)
        self.groups = tuple(Group(kind, node, tuple(units)) for (kind, node), units in groups.items())
        self.group_of = [0] * self.units
        for number, group in enumerate(self.groups):
            for one in group.units:
                self.group_of[one] = number
        self.node_of = [self.groups[g].node for g in self.group_of]
        self.routes: list[tuple[FlatHop, ...] | None] = []
        """By source * nodes + target; None where nothing joins them."""
        for source in machine.nodes:
            for target in machine.nodes:
                if not machine.joined(source, target):
                    self.routes.append(None)
                    continue
                hops = []
                for hop in machine.route(source, target):
                    latency_s, per_byte = machine.hop_cost(hop)
                    bounded = tuple(
                        link_index[name] for name in hop.links if machine.link(name).streams is not None
                    )
                    hops.append(
                        FlatHop(node_index[hop.source], node_index[hop.target], bounded, latency_s, per_byte)
                    )
                self.routes.append(tuple(hops))
        self.nbytes = [version.nbytes for version in graph.versions]
        self.version_data = [version.data for version in graph.versions]
        self.producer = [-1 if version.producer is None else version.producer for version in graph.versions]
        self.home = [self._home(node_index, datum.name, datum.home) for datum in graph.data]
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.predecessors, self.successors = graph.predecessors, graph.successors
        self.order = graph.order
        self.capacity = [machine.memory_bytes.get(node, math.inf) for node in machine.nodes]
        """Bytes that each memory holds."""
        self.durations: list[tuple[float, ...]] = self._durations(durations)
        """Per task: seconds on each group; infinite where it cannot run."""
        self._check_reach()
        self._check_homes()

    @property
    def bounded(self) -> bool:
        """Is there a memory that can be full?"""
        return min(self.capacity) < math.inf

    def with_memories(self, share: float) -> Problem:
        """The same, each memory but the first with room for that share of the bytes of all data.

        Raises:
            TaskTooLargeError: a task has room nowhere.
        """
        machine, rows = self.machine, {}
        for number, task in enumerate(self.graph.tasks):
            for group, takes in zip(self.groups, self.durations[number], strict=True):
                rows[task.kernel, task.size, group.kind] = takes
        bound = share * sum(datum.nbytes for datum in self.graph.data)
        bounded = Machine(
            machine.name,
            machine.units,
            machine.links,
            machine.hops,
            memory_bytes=dict.fromkeys(machine.nodes[1:], bound),
        )
        return Problem(self.graph, bounded, lambda task, kind: rows[task.kernel, task.size, kind])

    def unbounded(self) -> Problem:
        """The same with room for everything everywhere, for whoever plans without bounds; what cannot run somewhere
        for want of room still cannot."""
        loose = copy.copy(self)
        loose.capacity = [math.inf] * self.nodes
        return loose

    def working_bytes(self, task: int) -> float:
        """All that it reads and writes."""
        return sum(self.nbytes[version] for version in {*self.inputs[task], *self.outputs[task]})

    @property
    def tasks(self) -> int:
        """How many."""
        return len(self.graph.tasks)

    def with_durations(self, durations: Durations) -> Problem:
        """The same graph and machine with other expectations."""
        return Problem(self.graph, self.machine, durations)

    def transfer_s(self, source: int, target: int, nbytes: float) -> float:
        """Over an idle route, all its hops; infinite where there is none."""
        route = self.routes[source * self.nodes + target]
        if route is None:
            return math.inf
        return sum(hop.takes_s(nbytes) for hop in route)

    def _home(self, node_index: Mapping[str, int], datum: str, home: str | None) -> int:
        if home is None:
            return 0
        if home not in node_index:
            raise GraphError(
                f"graph '{self.graph.name}': datum '{datum}' lies at '{home}', which is no memory of machine "
                f"'{self.machine.name}' (it has {', '.join(node_index)})"
            )
        return node_index[home]

    def _durations(self, durations: Durations) -> list[tuple[float, ...]]:
        found: dict[tuple[str, float, str], float] = {}
        result = []
        for number, task in enumerate(self.graph.tasks):
            row = []
            needs = self.working_bytes(number) if self.bounded else 0.0
            for group in self.groups:
                if needs > self.capacity[group.node]:
                    row.append(math.inf)
                    continue
                key = (task.kernel, task.size, group.kind)
                if key not in found:
                    value = durations(task, group.kind)
                    found[key] = math.inf if value is None else float(value)
                row.append(found[key])
            if needs and not any(math.isfinite(value) for value in row):
                self._refuse_large(number, needs, durations)
            if not any(math.isfinite(value) for value in row) or not all(value >= 0 for value in row):
                raise GraphError(
                    f"graph '{self.graph.name}': no unit of machine '{self.machine.name}' can run task "
                    f"'{task.name}' (kernel '{task.kernel}', size {task.size:g}); kinds: "
                    f"{', '.join(self.machine.kinds)}"
                )
            result.append(tuple(row))
        return result

    def _refuse_large(self, number: int, needs: float, durations: Durations) -> None:
        """Raise if there are units that can run a task, but for want of memory."""
        task = self.graph.tasks[number]
        able = []
        for group in self.groups:
            value = durations(task, group.kind)
            if value is not None and math.isfinite(value):
                able.append(group)
        if able:
            most = max(able, key=lambda group: self.capacity[group.node])
            raise TaskTooLargeError(
                self.graph.name,
                task.name,
                self.machine.units[most.units[0]].name,
                needed_bytes=needs,
                available_bytes=self.capacity[most.node],
            )

    def _check_homes(self) -> None:
        """What lies in a memory at the start must fit there."""
        there = [0.0] * self.nodes
        for datum, home in enumerate(self.home):
            there[home] += self.nbytes[datum]
        for node, nbytes in enumerate(there):
            if nbytes > self.capacity[node]:
                raise GraphError(
                    f"graph '{self.graph.name}': {nbytes:,.0f} bytes are at home in memory "
                    f"'{self.machine.nodes[node]}' of machine '{self.machine.name}', which holds {self.capacity[node]:,.0f}"
                )

    def _check_reach(self) -> None:
        """A route must lead from wherever a version can be to wherever it can be needed."""
        useful = sorted(
            {self.groups[g].node for row in self.durations for g, d in enumerate(row) if d < math.inf}
        )
        for node in useful if any(self.outputs) else ():
            if self.capacity[node] < math.inf and self.routes[node * self.nodes] is None:
                names = self.machine.nodes
                raise GraphError(
                    f"graph '{self.graph.name}' on machine '{self.machine.name}': memory '{names[node]}' is bounded, "
                    f"and no link leads from it to '{names[0]}', where results go when it is full"
                )
        sources = sorted(set(useful) | set(self.home)) if self.tasks else []
        if not any(self.inputs):
            return
        for source in sources:
            for target in useful:
                if self.routes[source * self.nodes + target] is None:
                    names = self.machine.nodes
                    raise GraphError(
                        f"graph '{self.graph.name}' on machine '{self.machine.name}': data may have to go from "
                        f"'{names[source]}' to '{names[target]}', and no link leads there"
                    )
