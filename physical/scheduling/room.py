"""What fits into memories that are finite: which copies go, what is carried home first, and who must wait for room.

A unit's task is *admitted* where its values fit beside those of the tasks that are admitted there already; what else
lies there gives way. Prefetches take what is free, or what nobody will read any more. What a unit waits for also
takes the place of clean copies, those that another memory has; where those do not suffice, only copies are carried to
the first memory, which has no bound. So an admitted task always gets its room. The least recently used goes first; under
a dispatcher with foresight the one that is needed last (Belady 1966), and a prefetch also takes the place of clean
copies that are needed later than itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from physical.scheduling.problem import Problem

HOST_NODE = 0


@dataclass(frozen=True, slots=True)
class Drop:
    """A copy that gave way."""

    version: int
    node: int
    at_s: float


class Holdings(Protocol):
    """What lies where, as whoever executes knows it."""

    def held_at(self, node: int) -> Iterable[int]:
        """Versions in a memory."""

    def copies(self, version: int) -> int:
        """How many memories have it."""

    def read_again(self, version: int) -> bool:
        """Will some task read it, or is it the latest of its datum?"""


class Room:
    """Bounded memories of one execution."""

    def __init__(
        self,
        problem: Problem,
        holdings: Holdings,
        evict: Callable[[int, int], None],
        spill: Callable[[int, int], None],
        next_use: Callable[[int, int], float] | None = None,
    ) -> None:
        """`evict(version, node)` drops a copy at once; `spill(version, node)` begins to carry it to the first memory.
        `next_use(version, node)`: place of its next reader there in the order of tasks; None where nobody knows."""
        self._problem, self._holdings = problem, holdings
        self._evict, self._spill, self._next_use = evict, spill, next_use
        self._coming = [0.0] * problem.nodes
        self._leaving: Counter[tuple[int, int]] = Counter()
        self._admitted: dict[int, int] = {}
        self._queued: dict[int, int] = {}
        """By unit the task that waits to be admitted, in order."""
        self._outputs: dict[int, float] = {}
        self._spilling: set[tuple[int, int]] = set()
        self._touched: dict[tuple[int, int], int] = {}
        self._count = 0
        self._refused: list[set[int]] = [set() for _ in range(problem.nodes)]
        """Versions whose prefetch had no room since something last changed there."""

    def bounded(self, node: int) -> bool:
        """Has it an end?"""
        return self._problem.capacity[node] < math.inf

    # -- tasks -------------------------------------------------------------------------------------------

    def admit(self, unit: int, task: int) -> bool:
        """May the unit bring the task's values in? False: others must end first, and `retry` tells when."""
        problem = self._problem
        node = problem.node_of[unit]
        if not self.bounded(node) or unit in self._admitted:
            return True
        here = [t for u, t in self._admitted.items() if problem.node_of[u] == node]
        if sum(problem.working_bytes(t) for t in (*here, task)) > problem.capacity[node]:
            self._queued[unit] = task
            return False
        self._admitted[unit] = task
        self._refused[node].clear()
        self._touch(problem.inputs[task], node)
        return True

    def waits(self, unit: int) -> bool:
        """Is its task still to be admitted?"""
        return unit in self._queued

    def retry(self, gather: Callable[[int, int], None]) -> None:
        """Let `gather(unit, task)` ask again for every unit that waits to be admitted, in order."""
        queued, self._queued = self._queued, {}
        for unit, task in queued.items():
            gather(unit, task)

    def begin(self, unit: int, task: int) -> bool:
        """Take the room of the task's results; False: there is none yet."""
        node = self._problem.node_of[unit]
        if not self.bounded(node):
            return True
        nbytes = sum(self._problem.nbytes[version] for version in self._problem.outputs[task])
        if not self.make(node, nbytes, urgent=True):
            return False
        self._outputs[unit] = nbytes
        return True

    def release(self, unit: int) -> None:
        """The unit is done with its task, or lost."""
        task = self._admitted.pop(unit, None)
        self._queued.pop(unit, None)
        self._outputs.pop(unit, None)
        if task is not None:
            node = self._problem.node_of[unit]
            self._refused[node].clear()
            self._touch((*self._problem.inputs[task], *self._problem.outputs[task]), node)

    # -- transfers ---------------------------------------------------------------------------------------

    def leaves(self, version: int, source: int, target: int) -> None:
        """A transfer has begun: it holds room at its target, and its source stays."""
        self._coming[target] += self._problem.nbytes[version]
        self._leaving[version, source] += 1

    def arrives(self, version: int, source: int, target: int) -> None:
        """It has ended, in whatever way."""
        self._coming[target] -= self._problem.nbytes[version]
        self._refused[source].clear()
        self._refused[target].clear()
        self._leaving[version, source] -= 1
        if not self._leaving[version, source]:
            del self._leaving[version, source]
        if target == HOST_NODE:
            self._spilling = {key for key in self._spilling if key[0] != version}
        self._touch((version,), target)

    def make(self, node: int, nbytes: float, *, urgent: bool, wanted: int | None = None) -> bool:
        """Is there room for so much? What may give way does; False: not yet. `wanted`: the version that is to come."""
        free = self._problem.capacity[node] - self.used(node)
        if free >= nbytes:
            return True
        if not urgent and wanted in self._refused[node]:
            return False
        kept = {
            v for u, t in self._admitted.items() if self._problem.node_of[u] == node for v in self._values(t)
        }
        found = [v for v in self._holdings.held_at(node) if v not in kept and not self._leaving[v, node]]
        last_first = sorted((self._worth(v, node), v) for v in found)
        limit = math.inf
        if not urgent and self._next_use is not None and wanted is not None:
            limit = self._next_use(wanted, node)
            if limit < math.inf and not self._enough(last_first, nbytes - free, limit):
                self._refused[node].add(wanted)
                return False  # rather nothing goes than too little
        sole = []
        for worth, version in last_first:
            if self._may_go(version, urgent=urgent or -worth[1] > limit):
                self._evict(version, node)
                self._spilling.discard((version, node))
                free += self._problem.nbytes[version]
                if free >= nbytes:
                    return True
            else:
                sole.append(version)
        if urgent:
            self._carry_home(node, sole, nbytes - free)
        return False

    def used(self, node: int) -> float:
        """Bytes that lie there, are on their way there, or are being made there."""
        problem = self._problem
        held = sum(problem.nbytes[version] for version in self._holdings.held_at(node))
        made = sum(nbytes for unit, nbytes in self._outputs.items() if problem.node_of[unit] == node)
        return held + self._coming[node] + made

    # -- details -----------------------------------------------------------------------------------------

    def _may_go(self, version: int, *, urgent: bool) -> bool:
        if not self._holdings.read_again(version):
            return True
        return urgent and self._holdings.copies(version) > 1

    def _worth(self, version: int, node: int) -> tuple[bool, float, int]:
        """What sorts first goes first: what nobody reads, what is needed last, what was touched longest ago."""
        again = self._holdings.read_again(version)
        use = self._next_use(version, node) if again and self._next_use is not None else 0.0
        return again, -use, self._touched.get((version, node), 0)

    def _enough(
        self, last_first: list[tuple[tuple[bool, float, int], int]], nbytes: float, limit: float
    ) -> bool:
        """Do those that a prefetch may take the place of make room for it?"""
        for (again, use, _), version in last_first:
            if not again or (-use > limit and self._holdings.copies(version) > 1):
                nbytes -= self._problem.nbytes[version]
                if nbytes <= 0:
                    return True
        return False

    def _carry_home(self, node: int, versions: Iterable[int], nbytes: float) -> None:
        """Begin to carry as many only copies to the first memory as it takes."""
        on_their_way = sum(self._problem.nbytes[v] for v, at in self._spilling if at == node)
        for version in versions:
            if on_their_way >= nbytes:
                return
            if (version, node) not in self._spilling:
                self._spilling.add((version, node))
                self._spill(version, node)
                on_their_way += self._problem.nbytes[version]

    def _values(self, task: int) -> tuple[int, ...]:
        return (*self._problem.inputs[task], *self._problem.outputs[task])

    def _touch(self, versions: Iterable[int], node: int) -> None:
        self._count += 1
        for version in versions:
            self._touched[version, node] = self._count
