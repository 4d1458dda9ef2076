"""What is done, which memory holds which version, and what must be done again when a memory is lost."""

from __future__ import annotations

import math
from collections.abc import Iterable

from physical.scheduling.graph import GraphError
from physical.scheduling.problem import Problem


class Ledger:
    """Progress of one execution. Initial values stay where they are at home until the end."""

    def __init__(self, problem: Problem, wanted: Iterable[str] = ()) -> None:
        """Raises GraphError for a wanted datum that the graph does not have."""
        self._problem = problem
        self.done = [False] * problem.tasks
        self.left = problem.tasks
        self._waits: list[int] = []
        """Per task: predecessors that are not done."""
        self._ready: set[int] = set()
        self._look()
        self._where: list[set[int]] = [set() for _ in problem.nbytes]
        self._made_at: dict[int, int] = {}
        self._readers: list[set[int]] = [set() for _ in problem.nbytes]
        for task, reads in enumerate(problem.inputs):
            for version in reads:
                self._readers[version].add(task)
        names = {datum.name: index for index, datum in enumerate(problem.graph.data)}
        latest = {datum: version for version, datum in enumerate(problem.version_data)}
        for name in wanted:
            if name not in names:
                raise GraphError(f"graph '{problem.graph.name}' has no datum '{name}'")
        self.wanted = {latest[names[name]] for name in wanted}
        """Versions that are kept to the end."""
        for datum, home in enumerate(problem.home):
            self._where[datum].add(home)
            self._made_at[datum] = home

    def needed(self, version: int) -> bool:
        """Does some task read it, or is it wanted?"""
        return bool(self._readers[version]) or version in self.wanted

    def holds(self, version: int, node: int) -> bool:
        """Is it in this memory?"""
        return node in self._where[version]

    def came_from_elsewhere(self, version: int, node: int) -> bool:
        """Was it made in another memory?"""
        return self._made_at.get(version) != node

    def nearest(self, version: int, node: int) -> int | None:
        """The memory from which idle links bring it first; None where none has it."""
        if node in self._where[version]:
            return node
        problem, best_s, chosen = self._problem, math.inf, None
        for source in sorted(self._where[version]):
            takes_s = problem.transfer_s(source, node, problem.nbytes[version])
            if takes_s < best_s:
                best_s, chosen = takes_s, source
        return chosen

    def is_ready(self, task: int) -> bool:
        """Not done, and all that it waits for is."""
        return task in self._ready

    def ready(self) -> list[int]:
        """Tasks that are ready, in order of submission."""
        return sorted(self._ready)

    def came(self, version: int, node: int) -> None:
        """A copy is there."""
        self._where[version].add(node)

    def finish(self, task: int, node: int) -> list[int]:
        """A task is done; versions that nobody needs any more."""
        self.done[task] = True
        self.left -= 1
        self._ready.discard(task)
        for follower in self._problem.successors[task]:
            self._waits[follower] -= 1
            if not self._waits[follower] and not self.done[follower]:
                self._ready.add(follower)
        for version in self._problem.outputs[task]:
            self._where[version] = {node}
            self._made_at[version] = node
        seen = (*self._problem.inputs[task], *self._problem.outputs[task])
        return [version for version in dict.fromkeys(seen) if self._idle(version)]

    def forget(self, version: int) -> set[int]:
        """Drop a version; the memories that held it."""
        held, self._where[version] = self._where[version], set()
        return held

    def holders(self, version: int) -> list[int]:
        """Memories that have it."""
        return sorted(self._where[version])

    def held_at(self, node: int) -> list[int]:
        """Versions in a memory."""
        return [version for version, held in enumerate(self._where) if node in held]

    def copies(self, version: int) -> int:
        """How many memories have it."""
        return len(self._where[version])

    def read_again(self, version: int) -> bool:
        """Will some task read it, or is it wanted?"""
        return not self._idle(version)

    def evict(self, version: int, node: int) -> None:
        """One copy is gone."""
        self._where[version].discard(node)

    def lose(self, node: int) -> list[int]:
        """A memory is gone: what is needed and nowhere else is to be computed again. Returns initial versions that
        are nowhere now."""
        for held in self._where:
            held.discard(node)
        needed = [v for v in self.wanted if self._gone(v)]
        needed += [
            v
            for t, done in enumerate(self.done)
            if not done
            for v in self._problem.inputs[t]
            if self._gone(v)
        ]
        while needed:
            producer = self._problem.producer[needed.pop()]
            if producer >= 0 and self.done[producer]:
                self.done[producer] = False
                self.left += 1
                needed += [v for v in self._problem.inputs[producer] if self._gone(v)]
        self._look()
        initial = range(len(self._problem.home))
        return [version for version in initial if self.needed(version) and not self._where[version]]

    def _look(self) -> None:
        """Work out anew who waits for how many."""
        self._waits = [sum(not self.done[p] for p in before) for before in self._problem.predecessors]
        self._ready = {t for t, count in enumerate(self._waits) if not count and not self.done[t]}

    def _gone(self, version: int) -> bool:
        producer = self._problem.producer[version]
        return not self._where[version] and producer >= 0 and self.done[producer]

    def _idle(self, version: int) -> bool:
        """Was it made here, and has everybody read it?"""
        if self._problem.producer[version] < 0 or version in self.wanted:
            return False
        return all(self.done[task] for task in self._readers[version])
