"""From priorities to a schedule: list scheduling with insertion on units and on links.

Tasks are taken in order of priority among those whose predecessors are placed; each goes to the group of units
on which it would end first, transfers over contended links included, plus a bias. Tasks fill gaps between others
(HEFT's insertion, Topcuoglu 2002), and so do transfers on links, which start as soon as a version exists:
inputs are prefetched, and units reserved before they are free.

Every schedule made here is semi-active: nothing can start earlier without a change of order, so executing
the orders gives the planned times.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from physical.scheduling.plan import Move, Plan
from physical.scheduling.problem import FlatHop, Problem
from physical.scheduling.ranks import edge_s
from physical.scheduling.timeline import Lane, earliest, fresh, joint, occupy

Bias = Sequence[Sequence[float]]
"""Per task and group: seconds added to the end when groups are compared; infinite forbids."""


class Decoder:
    """List scheduling of one problem. Keeps nothing between runs but what follows from the problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        durations = problem.durations
        self.least_task_s = [
            min((row[g] for row in durations if row[g] < math.inf), default=0.0)
            for g in range(len(problem.groups))
        ]
        smallest = min((problem.nbytes[v] for reads in problem.inputs for v in reads), default=0.0)
        self.least_move_s = min(
            (hop.takes_s(smallest) for route in problem.routes if route for hop in route), default=0.0
        )
        quickest = [min(row) for row in durations]
        self.below_s = [0.0] * problem.tasks
        """At least this long from the end of a task to the end of all."""
        for task in reversed(problem.order):
            self.below_s[task] = max(
                (quickest[s] + self.below_s[s] for s in problem.successors[task]), default=0.0
            )
        readers = [0] * len(problem.nbytes)
        for reads in problem.inputs:
            for version in reads:
                readers[version] += 1
        self.readers = readers
        """Per version: how many tasks read it."""
        usual = edge_s(problem)
        nodes = len({group.node for group in problem.groups})
        self.share = [s * min(1.0, nodes / max(1, r)) for s, r in zip(usual, readers, strict=True)]
        """Per version: seconds of a link that a move costs, shared by those who read it."""
        self.options = [
            sorted((d, g, problem.groups[g].node) for g, d in enumerate(row) if d < math.inf)
            for row in durations
        ]

    def run(
        self,
        priority: Sequence[float],
        *,
        bias: Bias | None = None,
        cutoff_s: float = math.inf,
        name: str = "list",
        by_readiness: float = 0.0,
        move_price: float = 0.0,
    ) -> Plan | None:
        """The schedule for these priorities (higher first); None once it is sure to end at or after
        `cutoff_s`. `by_readiness` subtracts that many times the ready time from the priority."""
        return self.begin(bias, cutoff_s, move_price).plan(priority, name, by_readiness)

    def begin(self, bias: Bias | None, cutoff_s: float, move_price: float) -> ListRun:
        """One list scheduling that nothing is placed in yet."""
        return ListRun(self, bias, cutoff_s, move_price)


class ListRun:
    """State of one list scheduling."""

    def __init__(self, decoder: Decoder, bias: Bias | None, cutoff_s: float, move_price: float) -> None:
        problem = decoder.problem
        self.decoder, self.problem, self.bias, self.cutoff_s = decoder, problem, bias, cutoff_s
        self.options, self.move_price = decoder.options, move_price
        self.group_lanes = [fresh(len(group.units)) for group in problem.groups]
        self.link_lanes: list[list[Lane]] = [fresh(streams or 1) for streams in problem.streams]
        nodes = problem.nodes
        self.arrival = [math.inf] * (len(problem.nbytes) * nodes)
        self.copies: list[list[int]] = [[] for _ in problem.nbytes]
        for version, producer in enumerate(problem.producer):
            if producer < 0:
                home = problem.home[problem.version_data[version]]
                self.arrival[version * nodes + home] = 0.0
                self.copies[version].append(home)
        self.unit = [0] * problem.tasks
        self.start = [0.0] * problem.tasks
        self.end = [0.0] * problem.tasks
        self.moves: list[Move] = []

    def plan(self, priority: Sequence[float], name: str, by_readiness: float) -> Plan | None:
        """Place every task."""
        problem = self.problem
        waiting = [len(before) for before in problem.predecessors]
        ready_s = [0.0] * problem.tasks
        heap = [(-priority[t], t) for t, count in enumerate(waiting) if count == 0]
        heapq.heapify(heap)
        push, pop = heapq.heappush, heapq.heappop
        end, below, cutoff, successors = self.end, self.decoder.below_s, self.cutoff_s, problem.successors
        while heap:
            task = pop(heap)[1]
            ended = self.place(task, ready_s[task])
            if ended + below[task] >= cutoff:
                return None
            for follower in successors[task]:
                ready_s[follower] = max(ready_s[follower], ended)
                waiting[follower] -= 1
                if not waiting[follower]:
                    push(heap, (by_readiness * ready_s[follower] - priority[follower], follower))
        return Plan(problem, name, tuple(self.unit), tuple(self.start), tuple(end), tuple(self.moves))

    def place(self, task: int, ready_s: float) -> float:
        """Put a task where it ends first; its end."""
        return self.commit(task, ready_s, self.choose(task, ready_s))

    def choose(self, task: int, ready_s: float) -> tuple[float, int, int]:  # noqa: PLR0912  # the hot loop
        """The option (duration, group, node) with the least end plus bias plus price of moves."""
        bias = self.bias[task] if self.bias is not None else None
        arrival, nodes, inputs = self.arrival, self.problem.nodes, self.problem.inputs[task]
        best = math.inf
        chosen: tuple[float, int, int] | None = None
        for option in self.options[task]:
            takes, group, node = option
            extra = bias[group] if bias is not None else 0.0
            if ready_s + takes + extra >= best:
                continue
            at = ready_s
            missing = None
            for version in inputs:
                there = arrival[version * nodes + node]
                if there == math.inf:
                    if missing is None:
                        missing = [version]
                    else:
                        missing.append(version)
                elif there > at:
                    at = there
            if missing is not None:
                if self.move_price:
                    for version in missing:
                        extra += self.move_price * self.decoder.share[version]
                    if at + takes + extra >= best:
                        continue
                at = max(at, self.expect(missing, node, best - takes - extra))
            if at + takes + extra >= best:
                continue
            begins = earliest(self.group_lanes[group], at, takes)[0]
            if begins + takes + extra < best:
                best, chosen = begins + takes + extra, option
        if chosen is None:
            raise ValueError(f"task {task}: the bias forbids every group")
        return chosen

    def begin_s(self, task: int, ready_s: float, option: tuple[float, int, int]) -> float:
        """When a task could start as things are."""
        takes, group, node = option
        missing = []
        for version in self.problem.inputs[task]:
            there = self.arrival[version * self.problem.nodes + node]
            if there == math.inf:
                missing.append(version)
            else:
                ready_s = max(ready_s, there)
        return self.earliest_s(group, max(ready_s, self.expect(missing, node)), takes)

    def earliest_s(self, group: int, ready_s: float, takes_s: float) -> float:
        """The first gap of a group."""
        return earliest(self.group_lanes[group], ready_s, takes_s)[0]

    def commit(self, task: int, ready_s: float, option: tuple[float, int, int]) -> float:
        """Bring what is missing and take the first gap."""
        takes, group, node = option
        problem, arrival, nodes = self.problem, self.arrival, self.problem.nodes
        at = ready_s
        missing = []
        for version in problem.inputs[task]:
            there = arrival[version * nodes + node]
            if there == math.inf:
                missing.append(version)
            elif there > at:
                at = there
        if missing:
            if len(missing) > 1:
                missing.sort(key=lambda v: (min(arrival[v * nodes + c] for c in self.copies[v]), v))
            for version in missing:
                at = max(at, self.bring(version, node, task))
        begins, lane = earliest(self.group_lanes[group], at, takes)
        ends = begins + takes
        occupy(self.group_lanes[group][lane], begins, ends, self.decoder.least_task_s[group])
        self.unit[task] = problem.groups[group].units[lane]
        self.start[task], self.end[task] = begins, ends
        for version in problem.outputs[task]:
            arrival[version * nodes + node] = ends
            self.copies[version] = [node]
        return ends

    def source(self, version: int, node: int) -> tuple[int, float]:
        """(node to copy from, when the version is there): where an idle route would deliver it first."""
        arrival, problem, nodes = self.arrival, self.problem, self.problem.nodes
        copies = self.copies[version]
        if len(copies) == 1:
            return copies[0], arrival[version * nodes + copies[0]]
        nbytes = problem.nbytes[version]
        best, chosen = math.inf, copies[0]
        for copy in copies:
            route = problem.routes[copy * nodes + node]
            if route is None:
                continue
            at = arrival[version * nodes + copy]
            for hop in route:
                at += hop.latency_s + nbytes * hop.s_per_byte
            if at < best:
                best, chosen = at, copy
        return chosen, arrival[version * nodes + chosen]

    def expect(self, missing: list[int], node: int, limit_s: float = math.inf) -> float:
        """When these versions could be on a node, one after another; nothing is reserved. Once it is sure to
        be `limit_s` or later, some time that is."""
        latest = 0.0
        routes, base = self.problem.routes, self.problem.nodes
        lanes = self.link_lanes
        for version in missing:
            source, at = self.source(version, node)
            nbytes = self.problem.nbytes[version]
            route = routes[source * base + node] or ()
            idle = at
            for hop in route:
                idle += hop.latency_s + nbytes * hop.s_per_byte
            if idle >= limit_s:
                return idle
            for hop in route:
                takes = hop.latency_s + nbytes * hop.s_per_byte
                links = hop.links
                if len(links) == 2:
                    at = joint(lanes[links[0]], lanes[links[1]], at, takes)[0] + takes
                elif links:
                    at = self.slot(hop, at, takes)[0] + takes
                else:
                    at += takes
            if at > latest:
                latest = at
                if at >= limit_s:
                    return at
        return latest

    def bring(self, version: int, node: int, task: int) -> float:
        """Move a version to a node, over every hop of the route; when it is there."""
        nodes, nbytes = self.problem.nodes, self.problem.nbytes[version]
        source, at = self.source(version, node)
        for hop in self.problem.routes[source * nodes + node] or ():
            known = self.arrival[version * nodes + hop.target]
            if known < math.inf:
                at = known
                continue
            takes = hop.latency_s + nbytes * hop.s_per_byte
            begins, lanes = self.slot(hop, at, takes)
            at = begins + takes
            for link, lane in lanes:
                occupy(self.link_lanes[link][lane], begins, at, self.decoder.least_move_s)
            self.arrival[version * nodes + hop.target] = at
            self.copies[version].append(hop.target)
            self.moves.append(Move(version, hop.source, hop.target, begins, at, lanes, task))
        return at

    def slot(self, hop: FlatHop, ready_s: float, takes_s: float) -> tuple[float, tuple[tuple[int, int], ...]]:
        """First time at which every link of a hop has a free lane for so long, and those lanes."""
        links = hop.links
        if not links:
            return ready_s, ()
        if len(links) == 1:
            begins, lane = earliest(self.link_lanes[links[0]], ready_s, takes_s)
            return begins, ((links[0], lane),)
        if len(links) == 2:
            at, lane, other = joint(self.link_lanes[links[0]], self.link_lanes[links[1]], ready_s, takes_s)
            return at, ((links[0], lane), (links[1], other))
        at = ready_s
        while True:
            begins = at
            lanes = []
            for link in links:
                at, lane = earliest(self.link_lanes[link], at, takes_s)
                lanes.append((link, lane))
            if at == begins:
                return at, tuple(lanes)
