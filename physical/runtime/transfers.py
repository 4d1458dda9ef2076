"""Values on their way between memories: who waits for which link, and the threads that copy."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from physical.runtime.ledger import Ledger
from physical.runtime.port import Arrived, Event, MemoryLostError
from physical.runtime.units import Units
from physical.scheduling.plan import Lane, Move
from physical.scheduling.problem import FlatHop, Problem
from physical.scheduling.room import Room

NOW = -math.inf
"""Urgency of what a unit waits for."""


class Transfers:
    """All transfers of one execution. Used by the deciding thread; copies run in threads of their own."""

    def __init__(
        self, problem: Problem, ledger: Ledger, units: Units, report: Callable[[Event], None]
    ) -> None:
        self._problem, self._ledger, self._units, self._report = problem, ledger, units, report
        self.room: Room | None = None
        """None: every memory has room for everything."""
        self._asked = 0
        """How many wishes there ever were."""
        self._free = [list(range(streams or 0)) for streams in problem.streams]
        self._wishes: dict[tuple[int, int], float] = {}
        """(version, target) -> urgency of all that is wanted and not under way; also of what does not exist yet."""
        self._under_way: dict[tuple[int, int], tuple[Lane, ...]] = {}
        self._done: list[tuple[Arrived, tuple[Lane, ...], int]] = []
        self._gone: set[int] = set()
        self._readers: dict[int, int] = {}
        for task, reads in enumerate(problem.inputs):
            for version in reads:
                self._readers.setdefault(version, task)
        self._pool = ThreadPoolExecutor(max_workers=max(1, 2 * problem.nodes), thread_name_prefix="carrier")

    @property
    def busy(self) -> bool:
        """Is anything under way?"""
        return bool(self._under_way)

    def want(self, version: int, node: int, urgency: float) -> None:
        """Bring a version to a memory once it exists; lower urgencies first."""
        key = (version, node)
        if self._ledger.holds(version, node) or key in self._under_way or node in self._gone:
            return
        self._asked += key not in self._wishes
        self._wishes[key] = min(urgency, self._wishes.get(key, math.inf))

    def need(self, version: int, node: int) -> None:
        """A unit waits for it."""
        self.want(version, node, NOW)

    def exist(self, versions: Iterable[int]) -> None:
        """They were made just now; wishes for where they were made are fulfilled."""
        for version in versions:
            for key in [key for key in self._wishes if key[0] == version]:
                if self._ledger.holds(*key):
                    del self._wishes[key]

    def start(self) -> None:
        """Begin what free links and memories allow, the most urgent first."""
        asked = -1
        while asked != self._asked:  # making room may ask for more
            asked = self._asked
            self._start()

    def _start(self) -> None:
        problem = self._problem
        waiting = [(urgency, version, node) for (version, node), urgency in self._wishes.items()]
        heapq.heapify(waiting)
        while waiting:
            urgency, version, node = heapq.heappop(waiting)
            source = self._ledger.nearest(version, node)
            if source is None or (version, node) not in self._wishes:
                continue
            route = problem.routes[source * problem.nodes + node]
            if not route:
                continue
            hop = route[0]
            if hop.target != node:  # staged on the way: the wish stays until the stop there has it
                if (version, hop.target) not in self._wishes:
                    self.want(version, hop.target, urgency)
                    heapq.heappush(waiting, (urgency, version, hop.target))
                continue
            if all(self._free[link] for link in hop.links) and self._fits(version, node, urgency):
                self._begin(hop, version)

    def arrived(self, event: Arrived) -> None:
        """A copy has ended."""
        if self.room is not None:
            self.room.arrives(event.version, event.source, event.target)
        lanes = self._under_way.pop((event.version, event.target), ())
        for link, lane in lanes:
            heapq.heappush(self._free[link], lane)
        if event.target in self._gone:
            return
        if not event.ok:  # the memory that it came from is gone: from another one, or when it is made again
            self.want(event.version, event.target, NOW)
            return
        self._ledger.came(event.version, event.target)
        self._done.append((event, lanes, self._first_reader(event.version)))

    def lose(self, node: int) -> None:
        """A memory is gone."""
        self._gone.add(node)
        for key in [key for key in self._wishes if key[1] == node]:
            del self._wishes[key]

    def moves(self, origin_s: float) -> list[Move]:
        """What was carried."""
        return [
            Move(e.version, e.source, e.target, e.began_s - origin_s, e.ended_s - origin_s, lanes, task)
            for e, lanes, task in self._done
        ]

    def close(self) -> None:
        """Wait for what is under way."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fits(self, version: int, node: int, urgency: float) -> bool:
        """Is there room for it in its memory?"""
        if self.room is None or not self.room.bounded(node):
            return True
        return self.room.make(node, self._problem.nbytes[version], urgent=urgency == NOW, wanted=version)

    def _begin(self, hop: FlatHop, version: int) -> None:
        key = (version, hop.target)
        if self.room is not None:
            self.room.leaves(version, hop.source, hop.target)
        del self._wishes[key]
        self._under_way[key] = tuple((link, heapq.heappop(self._free[link])) for link in hop.links)
        self._pool.submit(self._carry, version, hop.source, hop.target)

    def _carry(self, version: int, source: int, target: int) -> None:
        began_s, ok = time.perf_counter(), True
        try:
            self._units.carry(version, source, target)
        except (MemoryLostError, KeyError):
            ok = False
        self._report(Arrived(version, source, target, began_s, time.perf_counter(), ok))

    def _first_reader(self, version: int) -> int:
        return self._readers.get(version, -1)
