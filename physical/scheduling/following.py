"""Carry out a plan while things go otherwise: planned units, planned order, corrected as they deviate.

Units of a group share their planned tasks. Inputs are fetched as soon as they exist, in the planned order. A unit
whose next planned task is late takes a later one that fits before it, and else *steals*: the task of another
group that would start there so late that it ends sooner here, by durations as they were observed so far.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence

from physical.scheduling.plan import Plan, sequence
from physical.scheduling.port import State

NEAR = 8
"""How many ready tasks are looked at for one whose inputs are there."""


AHEAD = 8
"""For how many tasks ahead, beside one a unit, what gave way is fetched again."""


class Following:
    """A dispatcher that follows a plan made for the same graph and machine."""

    def __init__(
        self,
        plan: Plan,
        *,
        stealing: bool = True,
        patience: float = 3.0,
        margin: float = 1.0,
        lateness: float = 20.0,
        foresight: bool = True,
    ) -> None:
        """`foresight`: where memories are bounded, tell what is needed last, and fetch again what gave way."""
        self.name = f"{plan.scheduler}+stealing" if stealing else plan.scheduler
        self._plan, self._stealing = plan.guide or plan, stealing
        self.foresees = foresight
        self._patience, self._margin, self._lateness = patience, margin, lateness
        self.stolen = 0

    def begin(self, state: State) -> None:
        """Reserve everything as planned."""
        self._state = state
        problem = state.problem
        self.stolen = 0
        self._place = {task: number for number, task in enumerate(sequence(self._plan))}
        self._group = [problem.group_of[unit] for unit in self._plan.unit]
        groups = range(len(problem.groups))
        self._planned: list[list[int]] = [[] for _ in groups]
        for task in sorted(self._place, key=self._place.__getitem__):
            self._planned[self._group[task]].append(task)
        self._next = [0 for _ in groups]
        self._ready: list[list[tuple[int, int]]] = [[] for _ in groups]
        self._is_ready: set[int] = set()
        self._taken: set[int] = set()
        self._running: dict[int, int] = {}
        self._ended: set[int] = set()
        self._backlog_s = [0.0 for _ in groups]
        self._ratio = [1.0 for _ in groups]
        for move in sorted(self._plan.moves, key=lambda m: (m.start_s, m.end_s)):
            state.fetch(move.version, move.target, move.start_s)
        self._readers: dict[tuple[int, int], list[int]] = {}
        if problem.bounded and self.foresees:
            self._look_ahead()

    def ready(self, tasks: Sequence[int]) -> None:
        """Queue them at their groups."""
        for task in tasks:
            group = self._group[task]
            if not any(self._state.alive(unit) for unit in self._state.problem.groups[group].units):
                other = self._elsewhere(task)
                if other is None:
                    continue
                group = self._group[task] = other
            heapq.heappush(self._ready[group], (self._place[task], task))
            self._is_ready.add(task)
            self._backlog_s[group] += self._state.problem.durations[task][group]

    def pick(self, unit: int) -> int | None:
        """The next planned task, a later one that fits, or a stolen one."""
        problem = self._state.problem
        group = problem.group_of[unit]
        task = self._own(unit, group)
        if task is None and self._stealing:
            task = self._steal(unit, group)
        if task is not None:
            self._taken.add(task)
            self._is_ready.discard(task)
            self._running[task] = unit
        return task

    def _own(self, unit: int, group: int) -> int | None:
        queue = self._ready[group]
        if not queue:
            return None
        problem = self._state.problem
        node = problem.node_of[unit]
        chosen = self._with_inputs(queue, node)
        expected = self._awaited(group) if len(problem.groups[group].units) == 1 else None
        if expected is not None and self._place[expected] < self._place[chosen]:
            idle_s = self._free_s(expected, node) - self._state.now_s()
            takes = problem.durations[chosen][group]
            if takes - idle_s > self._patience * idle_s:
                if expected not in self._is_ready:
                    return None
                chosen = expected
        queue.remove((self._place[chosen], chosen))
        heapq.heapify(queue)
        self._backlog_s[group] -= problem.durations[chosen][group]
        return chosen

    def _with_inputs(self, queue: list[tuple[int, int]], node: int) -> int:
        """The first ready task whose inputs are there, else the first."""
        state, inputs = self._state, self._state.problem.inputs
        for _, task in heapq.nsmallest(NEAR, queue) if len(queue) > 1 else queue:
            if all(state.present(version, node) for version in inputs[task]):
                return task
        return queue[0][1]

    def _awaited(self, group: int) -> int | None:
        """The first planned task of a group that nobody has taken."""
        planned, at = self._planned[group], self._next[group]
        while at < len(planned) and (planned[at] in self._taken or self._group[planned[at]] != group):
            at += 1
        self._next[group] = at
        return planned[at] if at < len(planned) else None

    def _free_s(self, task: int, node: int) -> float:
        """When a task could start: its predecessors ended and inputs there; infinite unless all that is left
        of its predecessors runs."""
        latest = self._state.now_s()
        if task in self._is_ready:
            arrivals = [self._state.expected_arrival_s(v, node) for v in self._state.problem.inputs[task]]
            return max(arrivals, default=latest)
        for before in self._state.problem.predecessors[task]:
            if before in self._ended:
                continue
            unit = self._running.get(before)
            if unit is None:
                return math.inf
            latest = max(latest, self._state.expected_end_s(unit))
        return latest

    def _steal(self, unit: int, group: int) -> int | None:
        """The ready task of another group that gains most by running here."""
        state, problem = self._state, self._state.problem
        node, now = problem.node_of[unit], state.now_s()
        best, chosen = 0.0, None
        for other, queue in enumerate(self._ready):
            if other == group or not queue:
                continue
            units = [u for u in problem.groups[other].units if state.alive(u)]
            if not units:
                continue
            free = min(state.expected_end_s(u) for u in units)
            before = free + self._backlog_s[other] * self._ratio[other] / len(units)
            for _, task in heapq.nlargest(4, queue):
                here = problem.durations[task][group] * self._ratio[group]
                # Only where the forecast was wrong, and what it gains is worth the disorder it brings.
                late = before - self._plan.start_s[task]
                if late < self._lateness * here or before - now - (1.0 + self._margin) * here <= best:
                    continue
                arrives = max((state.expected_arrival_s(v, node) for v in problem.inputs[task]), default=now)
                moving = max(0.0, arrives - now)
                gain = before - now - (1.0 + self._margin) * here - (1.0 + 4 * self._margin) * moving
                if gain > best:
                    best, chosen = gain, (other, task)
        if chosen is None:
            return None
        other, task = chosen
        self._ready[other].remove((self._place[task], task))
        heapq.heapify(self._ready[other])
        self._backlog_s[other] -= problem.durations[task][other]
        self._group[task] = group
        self.stolen += 1
        return task

    def _elsewhere(self, task: int) -> int | None:
        """A group for a task whose own is gone."""
        problem = self._state.problem
        best, chosen = math.inf, None
        for group, takes in enumerate(problem.durations[task]):
            alive = sum(self._state.alive(unit) for unit in problem.groups[group].units)
            if alive and takes < math.inf:
                ends = self._backlog_s[group] / alive + takes
                if ends < best:
                    best, chosen = ends, group
        return chosen

    def ended(self, task: int, unit: int, took_s: float) -> None:
        """Learn how fast the group really is (an exponential mean over some 20 tasks)."""
        problem = self._state.problem
        group = problem.group_of[unit]
        expected = problem.durations[task][group]
        self._running.pop(task, None)
        self._ended.add(task)
        if expected > 0.0:
            self._ratio[group] += 0.05 * (took_s / expected - self._ratio[group])
        if problem.bounded and self.foresees:
            self._fetch_again(group)

    def next_use(self, version: int, node: int) -> float:
        """The place in the plan of the next task that reads a version in this memory; infinite if there is none."""
        readers = self._readers.get((version, node))
        while readers:
            task = readers[-1]
            if task not in self._taken and self._state.problem.groups[self._group[task]].node == node:
                return self._place[task]
            readers.pop()
        return math.inf

    def _look_ahead(self) -> None:
        """Who reads what where, the next one last."""
        problem = self._state.problem
        self._readers = {}
        for task in sorted(self._place, key=self._place.__getitem__, reverse=True):
            node = problem.groups[self._group[task]].node
            if problem.capacity[node] < math.inf and task not in self._taken:
                for version in problem.inputs[task]:
                    self._readers.setdefault((version, node), []).append(task)

    def _fetch_again(self, group: int) -> None:
        """What the next tasks of a group read and what is not there, though it may have been."""
        state, problem = self._state, self._state.problem
        node = problem.groups[group].node
        if problem.capacity[node] == math.inf or self._awaited(group) is None:
            return
        left = AHEAD + len(problem.groups[group].units)
        for task in itertools.islice(self._planned[group], self._next[group], None):
            if task in self._taken or self._group[task] != group:
                continue
            for version in problem.inputs[task]:
                if not state.present(version, node) and state.expected_arrival_s(version, node) < math.inf:
                    state.fetch(version, node, self._plan.start_s[task])
            left -= 1
            if not left:
                return

    def lost(self, unit: int, withdrawn: Sequence[int]) -> None:
        """Queue again what is left of a group that is gone."""
        problem = self._state.problem
        gone = set(withdrawn)
        orphans: list[int] = []
        for group, queue in enumerate(self._ready):
            kept = [entry for entry in queue if entry[1] not in gone]
            if not any(self._state.alive(u) for u in problem.groups[group].units):
                orphans += [task for _, task in sorted(kept)]
                kept = []
            heapq.heapify(kept)
            self._ready[group] = kept
            self._backlog_s[group] = sum(problem.durations[task][group] for _, task in kept)
            self._next[group] = 0
        for task in gone:
            self._is_ready.discard(task)
        for task in gone | {t for t, u in self._running.items() if u == unit}:
            self._taken.discard(task)
            self._running.pop(task, None)
        self._ended -= gone
        if problem.bounded and self.foresees:
            self._look_ahead()
        self.ready(orphans)
