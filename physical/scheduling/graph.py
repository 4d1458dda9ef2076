"""A task graph: what is to be computed, on which data, in which order.

Tasks are submitted in order and name the data that they read and write; who waits for whom follows from that
(read after write, write after read, write after write), as in StarPU or OpenMP tasks. Each write makes a new
*version* of a datum; a version is what is moved between memories.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class GraphError(ValueError):
    """A graph that cannot be scheduled; the message names the task or datum."""


class CyclicGraphError(GraphError):
    """Tasks that wait for each other; `cycle` holds their names in order."""

    def __init__(self, graph: str, cycle: Sequence[str]) -> None:
        self.cycle = tuple(cycle)
        shown = " -> ".join([*self.cycle[:12], *(["..."] if len(self.cycle) > 12 else []), self.cycle[0]])
        super().__init__(f"graph '{graph}': these tasks wait for each other: {shown}")


class Access(StrEnum):
    """What a task does with a datum."""

    READ = "r"
    WRITE = "w"
    READ_WRITE = "rw"


@dataclass(frozen=True, slots=True)
class Data:
    """A datum that tasks share."""

    name: str
    nbytes: float
    home: str | None = None
    """Memory node that holds it at the start; None: the machine's first."""


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work. Durations are known per (kernel, size, kind of unit)."""

    name: str
    kernel: str
    size: float = 1.0
    """Size class: whatever number the performance model of the kernel goes by (bytes, elements, flops)."""
    accesses: tuple[tuple[str, Access], ...] = ()
    """Data by name, at most one entry each."""
    after: tuple[str, ...] = ()
    """Names of tasks that must have ended though no datum says so."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a datum: what a task wrote (`producer`), or what was there (`producer` is None)."""

    data: int
    producer: int | None
    nbytes: float


class TaskGraph:
    """Tasks in order of submission with their dependencies. Read-only.

    Raises:
        CyclicGraphError: `after` closes a circle.
        GraphError: a name that is used twice, unknown, or a negative size.
    """

    def __init__(self, name: str, tasks: Iterable[Task], data: Iterable[Data] = ()) -> None:
        self.name = name
        self.tasks = tuple(tasks)
        self.data = tuple(data)
        self._index = _named(name, "task", [task.name for task in self.tasks])
        self._data_index = _named(name, "datum", [datum.name for datum in self.data])
        for datum in self.data:
            if not datum.nbytes >= 0:
                raise GraphError(f"graph '{name}': datum '{datum.name}' has {datum.nbytes} bytes")
        self.versions: tuple[Version, ...]
        """Initial versions first, one a datum in order of data, then what tasks write."""
        self.inputs: tuple[tuple[int, ...], ...]
        """Per task: indices of the versions it reads."""
        self.outputs: tuple[tuple[int, ...], ...]
        self.predecessors: tuple[tuple[int, ...], ...]
        self._derive()
        followers: list[list[int]] = [[] for _ in self.tasks]
        for task, before in enumerate(self.predecessors):
            for predecessor in before:
                followers[predecessor].append(task)
        self.successors = tuple(map(tuple, followers))
        self.order = self._topological()
        """Task indices, each after those it waits for; earliest submitted first."""

    def __len__(self) -> int:
        return len(self.tasks)

    def __repr__(self) -> str:
        return f"TaskGraph({self.name!r}, {len(self.tasks)} tasks, {len(self.data)} data)"

    def index(self, task: str) -> int:
        """Position of a task by its name. Raises GraphError."""
        try:
            return self._index[task]
        except KeyError:
            raise GraphError(f"graph '{self.name}' has no task '{task}'") from None

    def _derive(self) -> None:
        versions = [Version(index, None, datum.nbytes) for index, datum in enumerate(self.data)]
        current = list(range(len(self.data)))
        readers: list[list[int]] = [[] for _ in self.data]
        inputs, outputs, predecessors = [], [], []
        for number, task in enumerate(self.tasks):
            before = {self._known(task, other) for other in task.after}
            reads, writes = [], []
            seen: set[str] = set()
            for name, access in task.accesses:
                datum = self._data_index.get(name)
                if datum is None:
                    raise GraphError(f"graph '{self.name}': task '{task.name}' uses unknown datum '{name}'")
                if name in seen:
                    raise GraphError(f"graph '{self.name}': task '{task.name}' names datum '{name}' twice")
                seen.add(name)
                writer = versions[current[datum]].producer
                if writer is not None:
                    before.add(writer)
                if access is not Access.WRITE:
                    reads.append(current[datum])
                    readers[datum].append(number)
                if access is not Access.READ:
                    before.update(reader for reader in readers[datum] if reader != number)
                    readers[datum] = []
                    current[datum] = len(versions)
                    writes.append(len(versions))
                    versions.append(Version(datum, number, self.data[datum].nbytes))
            inputs.append(tuple(reads))
            outputs.append(tuple(writes))
            predecessors.append(tuple(sorted(before)))
        self.versions = tuple(versions)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.predecessors = tuple(predecessors)

    def _known(self, task: Task, other: str) -> int:
        if other not in self._index:
            raise GraphError(f"graph '{self.name}': task '{task.name}' waits for unknown task '{other}'")
        return self._index[other]

    def _topological(self) -> tuple[int, ...]:
        waiting = [len(before) for before in self.predecessors]
        heap = [task for task, count in enumerate(waiting) if count == 0]
        order = []
        while heap:
            task = heapq.heappop(heap)
            order.append(task)
            for follower in self.successors[task]:
                waiting[follower] -= 1
                if waiting[follower] == 0:
                    heapq.heappush(heap, follower)
        if len(order) < len(self.tasks):
            raise CyclicGraphError(self.name, self._circle({t for t, count in enumerate(waiting) if count}))
        return tuple(order)

    def _circle(self, stuck: set[int]) -> list[str]:
        """A circle among tasks each of which waits for another of them, in the order of execution."""
        walk: list[int] = []
        place: dict[int, int] = {}
        task = min(stuck)
        while task not in place:
            place[task] = len(walk)
            walk.append(task)
            task = next(before for before in self.predecessors[task] if before in stuck)
        return [self.tasks[t].name for t in reversed(walk[place[task] :])]


def _named(graph: str, what: str, names: Sequence[str]) -> dict[str, int]:
    index: dict[str, int] = {}
    for number, name in enumerate(names):
        if name in index:
            raise GraphError(f"graph '{graph}': two {what}s are named '{name}'")
        index[name] = number
    return index
