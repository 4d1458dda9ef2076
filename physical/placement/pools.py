"""Series-parallel optima of a problem's machines: whole where that is quick, else pool by pool.

Pools of machines that carry flows of their own add up. Where all machines at once are too many for the table of
`compose`, two pools at a time are put together, solved exactly or dealt anew, and kept where that is no worse: a
large-neighbourhood search (Shaw, 1998) whose repair step is exact.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

from physical.placement.compose import Compositions, Counts, Piece, machine_offer, splits
from physical.placement.problem import IDLE, Placement, Problem, Run

WORK_PER_S = 1.5e7
"""Halves times layers that a table gets through in a second, on the safe side."""


class Pools:
    """Exact tables over subsets of the machines of a problem, links aside."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._kinds = problem.kinds
        self._kind_of = {i: k for k, (_, members) in enumerate(self._kinds) for i in members}
        self._falling = all(a >= b for rates, _ in self._kinds for a, b in itertools.pairwise(rates))
        self._solved: dict[Counts, list[Piece]] = {}

    def seconds(self, machines: Sequence[int]) -> float:
        """How long a table of these takes, roughly."""
        work = splits(self._counts(machines)) * self._problem.layers
        return work / WORK_PER_S * (1.0 if self._falling else self._problem.layers / 16.0)

    def solve(self, machines: Sequence[int]) -> dict[int, Run]:
        """The best series-parallel runs of these machines; who is not in it adds nothing."""
        counts = self._counts(machines)
        pieces = self._solved.get(counts)
        if pieces is None:
            layers = self._problem.layers
            offers = [
                machine_offer(str(k), _unit(k, len(counts)), rates, layers)
                for k, (rates, _) in enumerate(self._kinds)
                if counts[k] and rates
            ]
            groups = Compositions(layers, counts, offers).build()
            pieces = self._solved[counts] = [piece for group in groups for piece in group]
        free: dict[int, list[int]] = {}
        for i in sorted(machines, reverse=True):
            free.setdefault(self._kind_of[i], []).append(i)
        # In the order of the layers, so that machines that stand together in the list follow each other.
        ordered = sorted(pieces, key=lambda piece: piece.start)
        return {free[int(piece.label)].pop(): Run(piece.start, piece.count) for piece in ordered}

    def placement(self, runs: dict[int, Run]) -> Placement:
        """A placement of the whole problem from the runs of some machines."""
        rest = Run(0, 1) if self._problem.must_hold else IDLE
        return tuple(
            runs.get(i, rest if self._problem.most(i) else IDLE) for i in range(len(self._problem.machines))
        )

    def deal(self, limit_s: float, rng: random.Random) -> list[list[int]]:
        """All machines in pools whose tables take at most `limit_s`, each with some of every kind."""
        number = 1
        order = [i for _, members in self._kinds for i in members]
        while True:
            pools = [order[first::number] for first in range(number)]
            if number >= len(order) or all(self.seconds(pool) <= limit_s for pool in pools):
                rng.shuffle(pools)
                return pools
            number += 1

    def _counts(self, machines: Sequence[int]) -> Counts:
        counts = [0] * len(self._kinds)
        for i in machines:
            counts[self._kind_of[i]] += 1
        return tuple(counts)


def regroup(
    problem: Problem,
    value: Callable[[Placement], float],
    better: Callable[[Placement, float], bool],
    *,
    ended: Callable[[], bool],
    rng: random.Random,
    limit_s: float,
) -> None:
    """Improve pool by pool until `ended`, or `better` says stop."""
    pools = Pools(problem)
    groups = pools.deal(limit_s, rng)
    runs = [pools.solve(group) for group in groups]

    def total(parts: Sequence[dict[int, Run]]) -> tuple[Placement, float]:
        placement = pools.placement({i: run for part in parts for i, run in part.items()})
        return placement, value(placement)

    placement, best = total(runs)
    if better(placement, best):
        return
    while len(groups) > 1 and not ended():
        a, b = rng.sample(range(len(groups)), 2)
        both = groups[a] + groups[b]
        if pools.seconds(both) <= limit_s:
            whole = pools.solve(both)
            halves = _apart(both, whole, rng)
        else:
            rng.shuffle(both)
            # Mostly a few machines change sides.
            size = len(groups[a]) + rng.choice((-1, 0, 1))
            halves = (both[:size], both[size:])
            if not all(halves) or any(pools.seconds(half) > limit_s for half in halves):
                continue
        changed = list(runs)
        changed[a], changed[b] = pools.solve(halves[0]), pools.solve(halves[1])
        placement, found = total(changed)
        if found >= best:
            groups[a], groups[b] = list(halves[0]), list(halves[1])
            runs = changed
            if found > best:
                best = found
                if better(placement, best):
                    return


def _apart(both: Sequence[int], runs: dict[int, Run], rng: random.Random) -> tuple[list[int], list[int]]:
    """Machines in two pools again, along a line where their flows do not meet, if there is one."""
    parent = {i: i for i in both}

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    ends: dict[int, int] = {}
    top = max((run.end for run in runs.values()), default=0)
    for i, run in runs.items():
        for point in (run.start, run.end):
            if 0 < point < top:
                parent[root(i)] = root(ends.setdefault(point, i))
    clusters: dict[int, list[int]] = {}
    for i in both:
        clusters.setdefault(root(i), []).append(i)
    parts = list(clusters.values())
    rng.shuffle(parts)
    half = max(1, len(parts) // 2)
    first = [i for part in parts[:half] for i in part]
    second = [i for part in parts[half:] for i in part]
    if second:
        return first, second
    middle = len(first) // 2
    return first[:middle], first[middle:]


def _unit(place: int, length: int) -> Counts:
    return tuple(int(i == place) for i in range(length))
