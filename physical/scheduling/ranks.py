"""Orders of importance for list scheduling."""

from __future__ import annotations

import math
from collections.abc import Sequence

from physical.scheduling.problem import Problem


def mean_durations(problem: Problem) -> list[float]:
    """Per task: the mean over all units that can run it."""
    weights = [len(group.units) for group in problem.groups]
    result = []
    for row in problem.durations:
        able = [(d, w) for d, w in zip(row, weights, strict=True) if d < math.inf]
        result.append(sum(d * w for d, w in able) / sum(w for _, w in able))
    return result


def quickest_durations(problem: Problem) -> list[float]:
    """Per task: on the best unit there is."""
    return [min(row) for row in problem.durations]


def harmonic_durations(problem: Problem) -> list[float]:
    """Per task: units over the sum of their speeds, so that a slow kind hardly counts."""
    weights = [len(group.units) for group in problem.groups]
    result = []
    for row in problem.durations:
        if min(row) <= 0.0:
            result.append(0.0)
            continue
        result.append(sum(weights) / sum(w / d for d, w in zip(row, weights, strict=True)))
    return result


def edge_s(problem: Problem) -> list[float]:
    """Per version: mean time of a transfer between two different units' memories, as HEFT takes it."""
    per_byte, latency, pairs = 0.0, 0.0, 0
    nodes = [group.node for group in problem.groups for _ in group.units]
    for a in nodes:
        for b in nodes:
            route = problem.routes[a * problem.nodes + b]
            if route is not None:
                pairs += 1
                latency += sum(hop.latency_s for hop in route)
                per_byte += sum(hop.s_per_byte for hop in route)
    if len(set(nodes)) > 1:
        pairs -= len(nodes)
    pairs = max(pairs, 1)
    return [latency / pairs + nbytes * per_byte / pairs for nbytes in problem.nbytes]


def upward(
    problem: Problem, duration: Sequence[float], transfer: Sequence[float] | None = None
) -> list[float]:
    """Upward rank: the longest way from the start of a task to the end of all (Topcuoglu 2002).

    `transfer` per version; None counts no transfers.
    """
    rank = list(duration)
    producer = problem.producer
    for task in reversed(problem.order):
        longest = 0.0
        for follower in problem.successors[task]:
            way = rank[follower]
            if transfer is not None:
                way += max(
                    (transfer[v] for v in problem.inputs[follower] if producer[v] == task), default=0.0
                )
            longest = max(longest, way)
        rank[task] = duration[task] + longest
    return rank


def optimistic_costs(problem: Problem) -> list[tuple[float, ...]]:
    """Per task and group: the least time from its end to the end of all if every successor gets its best
    unit (the table of PEFT, Arabnejad and Barbosa 2014)."""
    mean_edge = edge_s(problem)
    groups = problem.groups
    node = [group.node for group in groups]
    table: list[tuple[float, ...]] = [()] * problem.tasks
    near: list[dict[int, float]] = [{}] * problem.tasks
    """Per task and memory node: the least of duration plus cost over the groups there."""
    anywhere = [0.0] * problem.tasks
    producer = problem.producer
    for task in reversed(problem.order):
        row = [0.0] * len(groups)
        for follower in problem.successors[task]:
            moved = 0.0
            for version in problem.inputs[follower]:
                if producer[version] == task and mean_edge[version] > moved:
                    moved = mean_edge[version]
            far, close = anywhere[follower] + moved, near[follower]
            for group, at in enumerate(node):
                here = close[at]
                here = min(here, far)
                row[group] = max(row[group], here)
        table[task] = tuple(row)
        best = dict.fromkeys(node, math.inf)
        for group, takes in enumerate(problem.durations[task]):
            best[node[group]] = min(best[node[group]], takes + row[group])
        near[task], anywhere[task] = best, min(best.values())
    return table
