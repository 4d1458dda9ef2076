"""List scheduling in memories that are finite: what lies where by then, what must give way, and what that costs.

An estimate, made in the order in which tasks are placed: a memory has room from when something left it. What is read
again last, by the priorities of its readers, gives way first, as under a dispatcher with foresight; an only copy is
carried to the first memory before. Whoever carries the plan out keeps the bounds exactly (`room.py`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from physical.scheduling.decode import Bias, Decoder, ListRun
from physical.scheduling.plan import Move, Plan
from physical.scheduling.problem import Problem
from physical.scheduling.timeline import earliest, occupy

HOST_NODE = 0


class BoundedDecoder(Decoder):
    """List scheduling of one problem whose memories are bounded."""

    def begin(self, bias: Bias | None, cutoff_s: float, move_price: float) -> ListRun:
        """One list scheduling that nothing is placed in yet."""
        return BoundedRun(self, bias, cutoff_s, move_price)


def decoder_of(problem: Problem) -> Decoder:
    """The one that suits the problem."""
    return BoundedDecoder(problem) if problem.bounded else Decoder(problem)


class BoundedRun(ListRun):
    """State of one list scheduling with bounded memories."""

    def __init__(self, decoder: Decoder, bias: Bias | None, cutoff_s: float, move_price: float) -> None:
        super().__init__(decoder, bias, cutoff_s, move_price)
        problem = self.problem
        self.bounded = [capacity < math.inf for capacity in problem.capacity]
        self.free = [capacity if capacity < math.inf else 0.0 for capacity in problem.capacity]
        """Bytes that nothing is planned to lie in; when each part of them is free:"""
        self.parts: list[list[tuple[float, float]]] = [[(0.0, nbytes)] for nbytes in self.free]
        self.held: list[dict[int, float]] = [{} for _ in range(problem.nodes)]
        """Per memory: version -> until when it is used there by what is placed."""
        self.unread = list(decoder.readers)
        self.readers: list[list[tuple[float, int]]] = [[] for _ in problem.nbytes]
        self.soonest = [-math.inf] * len(problem.nbytes)
        """Priority of the next reader of each version; the higher the sooner."""
        self.placed = [False] * problem.tasks
        self.newest = list(range(len(problem.home)))
        """Per datum: the version that was planned last."""
        for version, node in enumerate(problem.home):
            if self.bounded[node]:
                self._take(node, problem.nbytes[version], ())
                self.held[node][version] = 0.0

    def plan(self, priority: Sequence[float], name: str, by_readiness: float) -> Plan | None:
        """Place every task."""
        for task, reads in enumerate(self.problem.inputs):
            for version in reads:
                self.readers[version].append((priority[task], task))
        for version, readers in enumerate(self.readers):
            readers.sort()
            if readers:
                self.soonest[version] = readers[-1][0]
        return super().plan(priority, name, by_readiness)

    def choose(self, task: int, ready_s: float) -> tuple[float, int, int]:
        """The option with the least end plus bias plus price of moves, those that evictions cause among them."""
        bias = self.bias[task] if self.bias is not None else None
        best, chosen = math.inf, None
        for option in self.options[task]:
            takes, group, node = option
            extra = bias[group] if bias is not None else 0.0
            if ready_s + takes + extra >= best:
                continue
            at, missing = self._there(task, node, ready_s)
            extra += self.move_price * sum(self.decoder.share[version] for version in missing)
            if at + takes + extra >= best:
                continue
            if self.bounded[node]:
                room_s, again_s = self._room(task, node, missing)
                extra += again_s * max(1.0, self.move_price)
                at = max(at, room_s)
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
        _, _, node = option
        if self.bounded[node]:
            ready_s = max(ready_s, self._room(task, node, self._there(task, node, ready_s)[1])[0])
        return super().begin_s(task, ready_s, option)

    def commit(self, task: int, ready_s: float, option: tuple[float, int, int]) -> float:
        """Make room, bring what is missing and take the first gap."""
        takes, group, node = option
        problem, arrival, nodes = self.problem, self.arrival, self.problem.nodes
        keep = (*problem.inputs[task], *problem.outputs[task])
        at, missing = self._there(task, node, ready_s)
        missing.sort(key=lambda v: (min(arrival[v * nodes + c] for c in self.copies[v]), v))
        for version in missing:
            at = max(at, self._bring(version, node, task, keep))
        if self.bounded[node]:
            at = max(at, self._take(node, sum(problem.nbytes[v] for v in problem.outputs[task]), keep))
        begins, lane = earliest(self.group_lanes[group], at, takes)
        ends = begins + takes
        occupy(self.group_lanes[group][lane], begins, ends, self.decoder.least_task_s[group])
        self.unit[task] = problem.groups[group].units[lane]
        self.start[task], self.end[task] = begins, ends
        self._placed(task, node, ends)
        return ends

    # -- details -----------------------------------------------------------------------------------------

    def _there(self, task: int, node: int, ready_s: float) -> tuple[float, list[int]]:
        """(when all inputs that are planned to be there are, the others)."""
        at, missing, nodes = ready_s, [], self.problem.nodes
        for version in self.problem.inputs[task]:
            there = self.arrival[version * nodes + node]
            if there == math.inf:
                missing.append(version)
            elif there > at:
                at = there
        return at, missing

    def _room(self, task: int, node: int, missing: Sequence[int]) -> tuple[float, float]:
        """(when a task could have its room, link time of bringing again what gave way for it)."""
        problem = self.problem
        needs = sum(problem.nbytes[v] for v in missing) + sum(
            problem.nbytes[v] for v in problem.outputs[task]
        )
        latest, again_s = 0.0, 0.0
        if self.free[node] >= needs:
            for at, nbytes in sorted(self.parts[node]):
                if needs <= 0.0:
                    break
                latest, needs = at, needs - nbytes
            return latest, 0.0
        needs -= self.free[node]
        latest = max((at for at, _ in self.parts[node]), default=0.0)
        keep = (*problem.inputs[task], *problem.outputs[task])
        for version in self._last_first(node, keep):
            leaves = self.held[node][version]
            if len(self.copies[version]) == 1:
                home_s = problem.transfer_s(node, HOST_NODE, problem.nbytes[version])
                leaves = max(leaves, self.arrival[version * problem.nodes + node] + home_s)
                again_s += self.decoder.share[version]
            if self.soonest[version] > -math.inf:
                again_s += self.decoder.share[version]
            latest = max(latest, leaves)
            needs -= problem.nbytes[version]
            if needs <= 0.0:
                break
        return latest, again_s

    def _last_first(self, node: int, keep: Sequence[int]) -> list[int]:
        """What may give way, what is read last first."""
        soonest = self.soonest
        return sorted((v for v in self.held[node] if v not in keep), key=lambda v: (soonest[v], v))

    def _take(self, node: int, nbytes: float, keep: Sequence[int]) -> float:
        """Reserve room, and evict for it; when it is free."""
        if self.free[node] < nbytes:
            for version in self._last_first(node, keep):
                self._evict(version, node)
                if self.free[node] >= nbytes:
                    break
        self.free[node] -= nbytes
        parts, at = self.parts[node], 0.0
        while nbytes > 0.0 and parts:
            at, part = heapq.heappop(parts)
            if part > nbytes:
                heapq.heappush(parts, (at, part - nbytes))
            nbytes -= part
        return at

    def _leave(self, version: int, node: int, at_s: float) -> None:
        """What a version took is free from then on."""
        del self.held[node][version]
        nbytes = self.problem.nbytes[version]
        if nbytes > 0.0:
            self.free[node] += nbytes
            heapq.heappush(self.parts[node], (at_s, nbytes))

    def _evict(self, version: int, node: int) -> None:
        """A copy gives way, after it was carried home if it is the only one."""
        at_s = self.held[node][version]
        if len(self.copies[version]) == 1:
            at_s = max(at_s, self._bring(version, HOST_NODE, -1, (version,)))
        self._leave(version, node, at_s)
        self.copies[version].remove(node)
        self.arrival[version * self.problem.nodes + node] = math.inf

    def _bring(self, version: int, node: int, task: int, keep: Sequence[int]) -> float:
        """Move a version to a memory, over every hop of the route, each once there is room; when it is there."""
        nodes, nbytes = self.problem.nodes, self.problem.nbytes[version]
        source, at = self.source(version, node)
        for hop in self.problem.routes[source * nodes + node] or ():
            known = self.arrival[version * nodes + hop.target]
            if known < math.inf:
                at = known
                continue
            if self.bounded[hop.target]:
                at = max(at, self._take(hop.target, nbytes, keep))
            takes = hop.latency_s + nbytes * hop.s_per_byte
            begins, lanes = self.slot(hop, at, takes)
            at = begins + takes
            for link, lane in lanes:
                occupy(self.link_lanes[link][lane], begins, at, self.decoder.least_move_s)
            self.arrival[version * nodes + hop.target] = at
            self.copies[version].append(hop.target)
            if self.bounded[hop.target]:
                self.held[hop.target][version] = at
            self.moves.append(Move(version, hop.source, hop.target, begins, at, lanes, task))
        return at

    def _placed(self, task: int, node: int, ends: float) -> None:
        """Note who has read what, what nobody reads any more, and what is new."""
        problem = self.problem
        self.placed[task] = True
        for version in problem.inputs[task]:
            if self.bounded[node] and version in self.held[node]:
                self.held[node][version] = max(ends, self.held[node][version])
            self.unread[version] -= 1
            readers = self.readers[version]
            while readers and self.placed[readers[-1][1]]:
                readers.pop()
            self.soonest[version] = readers[-1][0] if readers else -math.inf
            self._forget_unread(version)
        for version in problem.outputs[task]:
            self.arrival[version * problem.nodes + node] = ends
            self.copies[version] = [node]
            if self.bounded[node]:
                self.held[node][version] = ends
            datum = problem.version_data[version]
            before, self.newest[datum] = self.newest[datum], version
            self._forget_unread(before)

    def _forget_unread(self, version: int) -> None:
        """Drop what nobody reads any more, unless it is what its datum is in the end."""
        last = self.newest[self.problem.version_data[version]] == version
        if self.unread[version] or last:
            return
        for node, held in enumerate(self.held):
            if version in held:
                self._leave(version, node, held[version])


__all__ = ["BoundedDecoder", "BoundedRun", "decoder_of"]
