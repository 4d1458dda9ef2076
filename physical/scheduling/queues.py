"""Dispatchers that decide while the work goes on, as StarPU's policies do: eager, prio, dmda, dmdas."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from physical.scheduling.port import State
from physical.scheduling.ranks import edge_s, mean_durations, upward


class Eager:
    """One queue that units empty when they are idle; nothing is fetched ahead (StarPU's eager)."""

    name = "eager"

    def begin(self, state: State) -> None:
        """Nothing is ready yet."""
        self._state = state
        self._heap: list[tuple[float, int]] = []
        self._count = 0

    def key(self, task: int) -> float:  # noqa: ARG002  # in order of arrival
        """Order in the queue; smaller first."""
        self._count += 1
        return float(self._count)

    def ready(self, tasks: Sequence[int]) -> None:
        """Append to the queue."""
        for task in tasks:
            heapq.heappush(self._heap, (self.key(task), task))

    def pick(self, unit: int) -> int | None:
        """The first of the queue that this unit can run."""
        problem = self._state.problem
        group = problem.group_of[unit]
        passed = []
        found = None
        while self._heap:
            entry = heapq.heappop(self._heap)
            if problem.durations[entry[1]][group] < math.inf:
                found = entry[1]
                break
            passed.append(entry)
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return found

    def ended(self, task: int, unit: int, took_s: float) -> None:
        """Nothing to learn."""

    def lost(self, unit: int, withdrawn: Sequence[int]) -> None:  # noqa: ARG002  # one queue for all
        """Forget what is not ready any more."""
        gone = set(withdrawn)
        self._heap = [entry for entry in self._heap if entry[1] not in gone]
        heapq.heapify(self._heap)


class Priority(Eager):
    """The queue in order of upward rank (StarPU's prio)."""

    name = "prio"

    def begin(self, state: State) -> None:
        """Rank all tasks."""
        super().begin(state)
        self._rank = upward(state.problem, mean_durations(state.problem))

    def key(self, task: int) -> float:
        """The longest way to the end first."""
        return -self._rank[task]


class Dmda:
    """A ready task goes to the unit on which it is expected to end first, transfers included, and its inputs
    are fetched at once (deque model data aware, Augonnet et al. 2011)."""

    name = "dmda"
    by_rank = False

    def begin(self, state: State) -> None:
        """Empty queues."""
        self._state = state
        problem = state.problem
        self._queues: list[list[tuple[float, int, int]]] = [[] for _ in range(problem.units)]
        self._queued_s = [0.0] * problem.units
        self._count = 0
        self._rank: list[float] = []
        if self.by_rank:
            self._rank = upward(problem, mean_durations(problem), edge_s(problem))

    def ready(self, tasks: Sequence[int]) -> None:
        """Give each task to a unit."""
        if self.by_rank:
            tasks = sorted(tasks, key=lambda task: (-self._rank[task], task))
        for task in tasks:
            self._assign(task)

    def _assign(self, task: int) -> None:
        state, problem = self._state, self._state.problem
        best, chosen = math.inf, -1
        arrivals: dict[int, float] = {}
        for unit in range(problem.units):
            takes = problem.durations[task][problem.group_of[unit]]
            if takes == math.inf or not state.alive(unit):
                continue
            node = problem.node_of[unit]
            if node not in arrivals:
                arrivals[node] = max(
                    (state.expected_arrival_s(version, node) for version in problem.inputs[task]), default=0.0
                )
            ends = max(state.expected_end_s(unit) + self._queued_s[unit], arrivals[node]) + takes
            if chosen < 0 or ends < best:
                best, chosen = ends, unit
        if chosen < 0:
            return
        self._count += 1
        key = -self._rank[task] if self.by_rank else float(self._count)
        heapq.heappush(self._queues[chosen], (key, self._count, task))
        self._queued_s[chosen] += problem.durations[task][problem.group_of[chosen]]
        for version in problem.inputs[task]:
            state.fetch(version, problem.node_of[chosen], key)

    def pick(self, unit: int) -> int | None:
        """The first of its own queue."""
        if not self._queues[unit]:
            return None
        task = heapq.heappop(self._queues[unit])[2]
        problem = self._state.problem
        self._queued_s[unit] -= problem.durations[task][problem.group_of[unit]]
        if not self._queues[unit]:
            self._queued_s[unit] = 0.0
        return task

    def ended(self, task: int, unit: int, took_s: float) -> None:
        """Nothing to learn: expectations are the problem's."""

    def lost(self, unit: int, withdrawn: Sequence[int]) -> None:
        """Spread what was queued at a unit that is gone."""
        gone = set(withdrawn)
        problem = self._state.problem
        orphans = [entry[2] for entry in sorted(self._queues[unit]) if entry[2] not in gone]
        self._queues[unit] = []
        for other, queue in enumerate(self._queues):
            kept = [entry for entry in queue if entry[2] not in gone]
            heapq.heapify(kept)
            self._queues[other] = kept
            group = problem.group_of[other]
            self._queued_s[other] = sum(problem.durations[entry[2]][group] for entry in kept)
        self.ready(orphans)


class Dmdas(Dmda):
    """dmda with each queue in order of upward rank (StarPU's dmdas)."""

    name = "dmdas"
    by_rank = True
