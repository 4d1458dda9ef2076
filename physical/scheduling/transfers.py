"""Versions under way in a simulation: queues by urgency on every hop, and the streams of links that are busy."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from typing import Protocol

from physical.scheduling.disturbance import Disturbance
from physical.scheduling.plan import Move
from physical.scheduling.problem import FlatHop, Problem
from physical.scheduling.room import Room


class Memories(Protocol):
    """What the transfers need of the simulation that they are part of."""

    problem: Problem
    disturbance: Disturbance
    clock_s: float
    node_gone: list[bool]
    room: Room | None

    def holds(self, version: int, node: int) -> bool:
        """Is this version in this memory?"""

    def nearest(self, version: int, node: int) -> int | None:
        """The memory from which an idle route brings it first."""

    def fetch_again(self, version: int, node: int, urgency: float) -> None:
        """Request a version, now or once it exists."""

    def wanted_by(self, version: int) -> int:
        """The first task that reads a version."""

    def schedule(self, at_s: float, what: str, payload: object) -> None:
        """Put an event into the future."""

    def store(self, version: int, node: int) -> None:
        """A version is complete in a memory."""


class Transfers:
    """Versions under way and the streams that are busy."""

    def __init__(self, simulation: Memories) -> None:
        problem = simulation.problem
        self.simulation, self.problem = simulation, problem
        self.free: list[list[int]] = [list(range(streams or 0)) for streams in problem.streams]
        self.queues: dict[FlatHop, list[tuple[float, int, int, int]]] = defaultdict(list)
        self.coming: dict[tuple[int, int], float] = {}
        self.onward: dict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
        self.moves: list[Move] = []
        self.count = 0

    def request(self, version: int, node: int, urgency: float) -> None:
        """Queue the first hop towards a node; the rest follows. The version exists somewhere."""
        problem, simulation = self.problem, self.simulation
        if simulation.holds(version, node):
            return
        known = self.coming.get((version, node))
        if known is not None:
            if urgency < known:
                self._hurry(version, node, urgency)
            return
        source = simulation.nearest(version, node)
        if source is None:
            return
        route = problem.routes[source * problem.nodes + node] or ()
        # A memory on the way may hold it too, where a hop costs nothing.
        begin = max(i for i, hop in enumerate(route) if simulation.holds(version, hop.source))
        hop = route[begin]
        if begin + 1 < len(route):
            self.onward[version, hop.target].append((node, urgency))
            self.request(version, hop.target, urgency)
            return
        self.coming[version, node] = urgency
        self.count += 1
        heapq.heappush(self.queues[hop], (urgency, self.count, version, -1))

    def _hurry(self, version: int, node: int, urgency: float) -> None:
        self.coming[version, node] = urgency
        for hop, queue in self.queues.items():
            if hop.target == node:
                for i, entry in enumerate(queue):
                    if entry[2] == version:
                        queue[i] = (urgency, entry[1], version, -1)
                        heapq.heapify(queue)
                        return

    def start(self) -> None:
        """Start what free streams allow, most urgent first."""
        while True:
            heads = sorted((queue[0], number) for number, queue in enumerate(self.queues.values()) if queue)
            hops = list(self.queues)
            started, asked = False, self.count
            for _, number in heads:
                hop = hops[number]
                if all(self.free[link] for link in hop.links) and self._fits(hop):
                    entry = heapq.heappop(self.queues[hop])
                    self._begin(hop, entry[2])
                    started = True
            if not started and self.count == asked:  # making room may have asked for more
                return

    def _fits(self, hop: FlatHop) -> bool:
        """Is there room for the most urgent version that waits for a hop?"""
        room = self.simulation.room
        if room is None or not room.bounded(hop.target):
            return True
        urgency, _, version, _ = self.queues[hop][0]
        return room.make(
            hop.target, self.problem.nbytes[version], urgent=urgency == -math.inf, wanted=version
        )

    def _begin(self, hop: FlatHop, version: int) -> None:
        simulation = self.simulation
        if not simulation.holds(version, hop.source):
            urgency = self.coming.pop((version, hop.target))
            simulation.fetch_again(version, hop.target, urgency)
            return
        lanes = tuple((link, heapq.heappop(self.free[link])) for link in hop.links)
        takes = hop.takes_s(self.problem.nbytes[version])
        takes *= simulation.disturbance.transfer_factor(version, hop.target)
        now = simulation.clock_s
        move = Move(version, hop.source, hop.target, now, now + takes, lanes, simulation.wanted_by(version))
        if simulation.room is not None:
            simulation.room.leaves(version, hop.source, hop.target)
        simulation.schedule(now + takes, "arrived", move)

    def arrived(self, move: Move) -> None:
        """A hop is done."""
        for link, lane in move.lanes:
            heapq.heappush(self.free[link], lane)
        self.coming.pop((move.version, move.target), None)
        if self.simulation.room is not None:
            self.simulation.room.arrives(move.version, move.source, move.target)
        if self.simulation.node_gone[move.target]:
            return
        self.moves.append(move)
        self.simulation.store(move.version, move.target)
        for node, urgency in self.onward.pop((move.version, move.target), ()):
            self.request(move.version, node, urgency)
