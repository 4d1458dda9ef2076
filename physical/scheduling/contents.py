"""What lies where in a simulation: each memory holds one version of a datum."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from physical.scheduling.problem import Problem


class Contents:
    """Versions by memory, and who will still read them."""

    def __init__(self, problem: Problem, done: Sequence[bool]) -> None:
        """`done`: of every task, kept up to date by whoever executes."""
        self._problem, self._done = problem, done
        self._held: list[dict[int, int]] = [{} for _ in range(problem.nodes)]
        """Per memory: datum -> version."""
        for datum, home in enumerate(problem.home):
            self._held[home][datum] = datum
        self._last = {datum: version for version, datum in enumerate(problem.version_data)}
        self._readers: list[list[int]] = [[] for _ in problem.nbytes]
        for task, reads in enumerate(problem.inputs):
            for version in reads:
                self._readers[version].append(task)

    def holds(self, version: int, node: int) -> bool:
        """Is this version in this memory?"""
        return self._held[node].get(self._problem.version_data[version]) == version

    def at(self, datum: int, node: int) -> int:
        """The version of a datum that is there; -1 if none is."""
        return self._held[node].get(datum, -1)

    def put(self, version: int, node: int) -> None:
        """It is there now, in place of any other of its datum."""
        held, datum = self._held[node], self._problem.version_data[version]
        held[datum] = version

    def evict(self, version: int, node: int) -> None:
        """A copy is gone."""
        del self._held[node][self._problem.version_data[version]]

    def forget(self, node: int) -> None:
        """A memory is gone."""
        self._held[node].clear()

    def newest(self) -> dict[int, int]:
        """By datum its newest version anywhere."""
        found: dict[int, int] = {}
        for held in self._held:
            for datum, version in held.items():
                found[datum] = max(version, found.get(datum, -1))
        return found

    def nearest(self, version: int, node: int) -> int | None:
        """The memory from which an idle route brings it first; None if no memory has it."""
        problem = self._problem
        best, chosen = math.inf, None
        datum = problem.version_data[version]
        for source, held in enumerate(self._held):
            if held.get(datum) == version:
                takes = problem.transfer_s(source, node, problem.nbytes[version])
                if takes < best:
                    best, chosen = takes, source
        return chosen

    def first_reader(self, version: int) -> int:
        """The first task that reads a version; -1 if none does."""
        readers = self._readers[version]
        return readers[0] if readers else -1

    # -- for the room ------------------------------------------------------------------------------------

    def held_at(self, node: int) -> Iterable[int]:
        """Versions in a memory."""
        return self._held[node].values()

    def holders(self, version: int) -> Iterator[int]:
        """Memories that have it."""
        datum = self._problem.version_data[version]
        return (node for node, held in enumerate(self._held) if held.get(datum) == version)

    def copies(self, version: int) -> int:
        """How many memories have it."""
        return sum(1 for _ in self.holders(version))

    def read_again(self, version: int) -> bool:
        """Will some task read it, or is it the latest of its datum?"""
        if self._last[self._problem.version_data[version]] == version:
            return True
        return any(not self._done[task] for task in self._readers[version])
