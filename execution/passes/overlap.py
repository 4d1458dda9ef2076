"""Inter-op overlap: independent branches run side by side, each lane a thread of its own.

    plan = Overlap(lanes=2).plan(graph)          # which operation runs in which lane, and what is expected of it
    module = OverlapModule(graph, plan)          # runs it; call `close` at the end

Operations are placed by upward rank and earliest finish (HEFT: Topcuoglu et al., 2002) on the cost model's times. A lane
waits for another only where a value crosses over; reads and writes of shared memory cross over like values, so the
result is the same bits. Graphs that draw random numbers or act on the world are refused. `plan.gain` tells what is
expected; measurement decides whether it serves.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from execution.graph.form import Graph
from execution.graph.node import HOLDERS, Arg, Atom, GraphError, Node, Record, Ref
from execution.graph.rebuild import resolve_op
from execution.passes.editor import atom


@dataclass(frozen=True, slots=True)
class LanePlan:
    """Operations of each lane in order; the first lane is the caller's own thread."""

    lanes: tuple[tuple[str, ...], ...]
    expected_s: float
    alone_s: float
    """In one lane."""

    @property
    def gain(self) -> float:
        """How many times faster than in one lane, by the cost model."""
        return self.alone_s / self.expected_s if self.expected_s else 1.0


@dataclass(frozen=True, slots=True)
class Overlap:
    """How branches are spread over lanes."""

    lanes: int = 2
    flops_per_s: float = 4e10
    bytes_per_s: float = 1e10
    launch_s: float = 5e-6
    crossing_s: float = 3e-5
    """Until another lane notices a value."""

    def plan(self, graph: Graph) -> LanePlan:
        """Lanes for the graph's calls. Raises GraphError where the order of effects must be kept."""
        for node in graph.calls:
            if node.effect or node.inner is not None:
                raise GraphError(
                    f"{graph.name}: overlap: {node.name} ({node.op}) has effects or an inner graph"
                )
        seconds = {node.name: self._seconds(graph, node) for node in graph.calls}
        after: dict[str, list[str]] = {name: [] for name in seconds}
        for name in seconds:
            for before in graph.dependencies[name]:
                if before in seconds:
                    after[before].append(name)
        rank: dict[str, float] = {}
        for name in reversed(list(seconds)):
            rank[name] = seconds[name] + max((rank[user] for user in after[name]), default=0.0)
        # Ranks fall along every edge but where an operation takes no time: program order breaks those ties.
        place = {name: at for at, name in enumerate(seconds)}
        lanes: list[list[str]] = [[] for _ in range(self.lanes)]
        free = [0.0] * self.lanes
        done: dict[str, tuple[float, int]] = {}
        for name in sorted(seconds, key=lambda each: (-rank[each], place[each])):
            finish, lane = min(
                (self._start(graph, name, lane, free[lane], done) + seconds[name], lane)
                for lane in range(self.lanes)
            )
            lanes[lane].append(name)
            free[lane], done[name] = finish, (finish, lane)
        return LanePlan(tuple(tuple(lane) for lane in lanes), max(free), sum(seconds.values()))

    def _start(
        self, graph: Graph, name: str, lane: int, free: float, done: Mapping[str, tuple[float, int]]
    ) -> float:
        start = free
        for before in graph.dependencies[name]:
            if before in done:
                finish, where = done[before]
                start = max(start, finish + (self.crossing_s if where != lane else 0.0))
        return start

    def _seconds(self, graph: Graph, node: Node) -> float:
        cost = graph.cost(node.name)
        moved = 0 if node.views else cost.bytes
        return max(cost.flops / self.flops_per_s, moved / self.bytes_per_s) + self.launch_s


class OverlapModule(nn.Module):
    """Runs a graph in lanes. One caller at a time; inference only; results as a tuple, or the one tensor."""

    def __init__(self, graph: Graph, plan: LanePlan, *, threads: int = 1) -> None:
        """`threads`: intra-op threads of each lane. The pool's threads keep it for themselves."""
        super().__init__()
        planned = [name for lane in plan.lanes for name in lane]
        if sorted(planned) != sorted(node.name for node in graph.calls):
            raise GraphError(f"{graph.name}: overlap: the plan is of another graph")
        self._graph, self._threads = graph, threads
        where = {name: lane for lane, names in enumerate(plan.lanes) for name in names}
        crossing = {
            before
            for name in planned
            for before in graph.dependencies[name]
            if before in where and where[before] != where[name]
        }
        self._lanes = [
            [_Step.of(graph, name, where, announces=name in crossing) for name in names]
            for names in plan.lanes
        ]
        self._crossing = crossing
        self._pool = ThreadPoolExecutor(max(1, len(plan.lanes) - 1), "overlap", _limit_threads, (threads,))
        # Starting threads sets torch's count for new threads: put the caller's back.
        before = torch.get_num_threads()
        for each in [self._pool.submit(threading.get_ident) for _ in plan.lanes[1:]]:
            each.result()
        torch.set_num_threads(before)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Any:
        """The graph's results."""
        values: dict[str, Any] = {
            node.name: tensor for node, tensor in zip(self._graph.inputs, inputs, strict=True)
        }
        for node in self._graph.nodes:
            if node.kind in HOLDERS:
                values[node.name] = self._graph.tensors[node.target]
        run = _Run(values, {name: threading.Event() for name in self._crossing})
        before = torch.get_num_threads()
        if before != self._threads:
            torch.set_num_threads(self._threads)
        try:
            others: list[Future[None]] = [self._pool.submit(run.lane, lane) for lane in self._lanes[1:]]
            run.lane(self._lanes[0])
            for other in others:
                other.result()
        finally:
            if before != self._threads:
                torch.set_num_threads(before)
        if run.error is not None:
            raise run.error
        results = tuple(_real(arg, values) for arg in self._graph.output.args)
        out_spec = self._graph.signature.out_spec
        return results[0] if len(results) == 1 and (out_spec is None or out_spec.is_leaf()) else results

    def close(self) -> None:
        """End the lanes' threads."""
        self._pool.shutdown()


@dataclass(frozen=True, slots=True)
class _Step:
    """One operation with what it waits for from other lanes."""

    name: str
    call: Any
    args: tuple[Arg, ...]
    kwargs: tuple[tuple[str, Arg], ...]
    waits: tuple[str, ...]
    announces: bool

    @staticmethod
    def of(graph: Graph, name: str, where: Mapping[str, int], *, announces: bool) -> _Step:
        node = graph[name]
        waits = tuple(b for b in graph.dependencies[name] if b in where and where[b] != where[name])
        return _Step(name, resolve_op(node.op), node.args, node.kwargs, waits, announces)


class _Run:
    """One call. Values stay to its end: lanes do not tell each other when they are done with one."""

    def __init__(self, values: dict[str, Any], events: Mapping[str, threading.Event]) -> None:
        self.values, self.events = values, events
        self.error: BaseException | None = None

    def lane(self, steps: Sequence[_Step]) -> None:
        with torch.no_grad():
            try:
                for step in steps:
                    for name in step.waits:
                        self.events[name].wait()
                    if self.error is not None:
                        break
                    args = [_real(arg, self.values) for arg in step.args]
                    kwargs = {key: _real(value, self.values) for key, value in step.kwargs}
                    self.values[step.name] = step.call(*args, **kwargs)
                    if step.announces:
                        self.events[step.name].set()
            except BaseException as error:  # noqa: BLE001 raised again by the caller's thread
                self.error = error
        if self.error is not None:
            for event in self.events.values():  # nobody waits for what will not come
                event.set()


def _limit_threads(threads: int) -> None:
    torch.set_num_threads(threads)


def _real(arg: Arg, values: Mapping[str, Any]) -> Any:
    match arg:
        case Ref(name):
            return values[name]
        case tuple():
            return [_real(item, values) for item in arg]
        case Record((), (start, stop, step)):
            return slice(start, stop, step)
        case Atom():
            return atom(arg)
    return arg
