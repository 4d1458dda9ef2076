"""The flow of a given placement: the most tokens/s, what each machine and link carries, and what binds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from physical.placement.maxflow import FlowNetwork
from physical.placement.problem import SINK, SOURCE, Problem, Run, joins

_ROUNDING = 1.0 + 1e-9


@dataclass(frozen=True)
class Cut:
    """A minimum cut: what together binds the flow. Its capacities add up to it."""

    machines: tuple[int, ...] = ()
    links: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Flow:
    """A maximum flow."""

    tokens_per_s: float
    links: dict[tuple[int, int], float]
    """(from, to) -> tokens/s, those that carry any; SOURCE and SINK are ends."""
    machines: tuple[float, ...]
    """Tokens/s through each machine."""
    cuts: tuple[Cut, ...]
    """The cut nearest the source and, where it is another, that nearest the sink."""


def tokens_per_s(problem: Problem, placement: Sequence[Run]) -> float:
    """The maximum flow alone. Quick where no link binds: then machines are arcs between layer boundaries."""
    if not problem.loose_links:
        return _network(problem, placement)[0].solve(0, 1)
    points = {0: 0, problem.layers: 1}
    arcs: dict[tuple[int, int], float] = {}
    for i, run in enumerate(placement):
        if run.count:
            arcs[run.start, run.end] = arcs.get((run.start, run.end), 0.0) + problem.rate(i, run)
            points.setdefault(run.start, len(points))
            points.setdefault(run.end, len(points))
    if problem.partial:
        return _partial_network(problem, placement, points).solve(0, 1)
    network = FlowNetwork(len(points))
    for (start, end), rate in arcs.items():
        network.add(points[start], points[end], rate)
    return network.solve(0, 1)


def max_flow(problem: Problem, placement: Sequence[Run]) -> Flow:
    """The maximum flow with all that it does."""
    network, machine_arcs, link_arcs = _network(problem, placement)
    value = network.solve(0, 1)
    links = {ends: flow for ends, arc in link_arcs.items() if (flow := network.flow(arc)) > 0.0}
    machines = tuple(network.flow(arc) if arc is not None else 0.0 for arc in machine_arcs)
    near = network.reachable(0)
    far = set(range(2 + 2 * len(problem.machines))) - network.reaching(1)
    sides = [near] if near == far else [near, far]
    cuts = tuple(_cut(side, machine_arcs, link_arcs) for side in sides)
    return Flow(value, links, machines, cuts if math.isfinite(value) and value > 0.0 else ())


def _vertex(end: int, *, leaving: bool) -> int:
    """0 and 1 are source and sink; a machine has a vertex where flow enters and one where it leaves."""
    if end in {SOURCE, SINK}:
        return 0 if end == SOURCE else 1
    return 2 + 2 * end + leaving


def _network(
    problem: Problem, placement: Sequence[Run]
) -> tuple[FlowNetwork, list[int | None], dict[tuple[int, int], int]]:
    network = FlowNetwork(2 + 2 * len(problem.machines))
    machine_arcs: list[int | None] = []
    link_arcs: dict[tuple[int, int], int] = {}
    entering: dict[int, list[int]] = {}
    for j, run in enumerate(placement):
        if run.count:
            for point in range(run.start, run.end if problem.partial else run.start + 1):
                entering.setdefault(point, []).append(j)

    def link(a: int, b: int) -> None:
        rate = problem.link(a, b)
        if rate > 0.0:
            arc = network.add(_vertex(a, leaving=True), _vertex(b, leaving=False), rate)
            link_arcs[a, b] = arc

    for i, run in enumerate(placement):
        if not run.count:
            machine_arcs.append(None)
            continue
        rate = problem.rate(i, run)
        machine_arcs.append(network.add(_vertex(i, leaving=False), _vertex(i, leaving=True), rate))
        if run.start == 0:
            link(SOURCE, i)
        if run.end == problem.layers:
            link(i, SINK)
        else:
            for j in entering.get(run.end, ()):
                if i != j and joins(problem, run, placement[j]):
                    link(i, j)
    return network, machine_arcs, link_arcs


def _partial_network(problem: Problem, placement: Sequence[Run], points: dict[int, int]) -> FlowNetwork:
    """Layer boundaries, and for each machine a vertex where requests enter it at any of its layers."""
    network = FlowNetwork(len(points) + len(placement))
    for i, run in enumerate(placement):
        if not run.count:
            continue
        inside = len(points) + i
        network.add(inside, points[run.end], problem.rate(i, run))
        for point, vertex in points.items():
            if run.start <= point < run.end and (point > 0 or run.start == 0):
                network.add(vertex, inside, math.inf)
    return network


def _cut(side: set[int], machine_arcs: Sequence[int | None], link_arcs: dict[tuple[int, int], int]) -> Cut:
    machines = tuple(
        i
        for i, arc in enumerate(machine_arcs)
        if arc is not None and _vertex(i, leaving=False) in side and _vertex(i, leaving=True) not in side
    )
    links = tuple(
        (a, b)
        for a, b in link_arcs
        if _vertex(a, leaving=True) in side and _vertex(b, leaving=False) not in side
    )
    return Cut(machines, links)


def reaches(value: float, goal: float) -> bool:
    """`value` is at least `goal`, rounding aside."""
    return value * _ROUNDING >= goal
