"""The best placement that a time budget allows, with a bound, and the curve of how it came about."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context

from physical.placement import starts
from physical.placement.anneal import Annealer
from physical.placement.bound import upper_bound
from physical.placement.flow import reaches, tokens_per_s
from physical.placement.milp import by_kind, by_machine
from physical.placement.pools import Pools, regroup
from physical.placement.problem import IDLE, Placement, Problem, Run, check

Clock = Callable[[], float]
STARTS = {"separate": starts.separate, "swarm": starts.swarm, "petals": starts.petals}
_LEVELS = 8
"""Widths of links at which sites are looked for."""
_FREE = 5
"""Machines that a sub-problem of the MILP may move at once."""


@dataclass(frozen=True)
class Step:
    """A best so far."""

    at_s: float
    tokens_per_s: float
    method: str


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    placement: Placement
    tokens_per_s: float
    bound: float
    """No placement is better."""
    curve: tuple[Step, ...]
    took_s: float

    @property
    def optimal(self) -> bool:
        """The bound is reached, rounding aside."""
        return reaches(self.tokens_per_s, self.bound)

    @property
    def method(self) -> str:
        """What found it."""
        return self.curve[-1].method if self.curve else "none"

    def reached_s(self, goal: float) -> float | None:
        """When a figure was reached first; None: never."""
        return next((step.at_s for step in self.curve if reaches(step.tokens_per_s, goal)), None)


class _Best:
    """The best so far, kept by all methods in turn."""

    def __init__(self, problem: Problem, budget_s: float, clock: Clock) -> None:
        self.problem, self.budget_s, self._clock = problem, budget_s, clock
        self._began = clock()
        rest = Run(0, 1) if problem.must_hold else IDLE
        self.placement: Placement = tuple(
            rest if problem.most(i) else IDLE for i in range(len(problem.machines))
        )
        self.tokens_per_s = tokens_per_s(problem, self.placement)
        self.bound = upper_bound(problem)
        self.curve: list[Step] = []

    def now_s(self) -> float:
        return self._clock() - self._began

    def left_s(self) -> float:
        return self.budget_s - self.now_s()

    def over(self) -> bool:
        return self.done() or self.left_s() <= 0.0

    def done(self) -> bool:
        return reaches(self.tokens_per_s, self.bound)

    def offer(self, placement: Placement, method: str) -> bool:
        """Take it if it is better; True when nothing better can be."""
        check(self.problem, placement)
        value = tokens_per_s(self.problem, placement)
        if value > self.tokens_per_s * (1.0 + 1e-12) or (not self.curve and value > 0.0):
            self.placement, self.tokens_per_s = placement, value
            self.curve.append(Step(self.now_s(), value, method))
        return self.done()

    def found(self) -> Found:
        return Found(self.placement, self.tokens_per_s, self.bound, tuple(self.curve), self.now_s())


def search(
    problem: Problem,
    *,
    budget_s: float = 10.0,
    seed: int = 0,
    processes: int = 1,
    warm: Sequence[Placement] = (),
    clock: Clock = time.perf_counter,
) -> Found:
    """Known systems' placements, exact series-parallel tables, HiGHS, then annealing, until the budget is spent.

    It ends early when the bound is reached. One thread a process; `processes` anneal beside each other (2 at most).
    """
    best = _Best(problem, budget_s, clock)
    rng = random.Random(seed)
    for placement in warm:
        best.offer(placement, "given")
    for name, start in STARTS.items():
        if not best.over():
            best.offer(start(problem), name)
    if not best.over():
        _compose(best, rng)
    if not best.over():
        _milp(best)
    if not best.over():
        _anneal(best, rng, min(2, processes))
    return best.found()


def _compose(best: _Best, rng: random.Random) -> None:
    """Series-parallel optima: of all machines together where that takes a fair share of the budget at most."""
    problem = best.problem
    pools, everyone = Pools(problem), list(range(len(problem.machines)))
    if not problem.loose_links:
        _sites(best, pools)
    if pools.seconds(everyone) <= 0.4 * best.left_s():
        best.offer(pools.placement(pools.solve(everyone)), "composed")
        return
    until_s = best.now_s() + 0.5 * best.left_s()
    regroup(
        problem,
        lambda placement: tokens_per_s(problem, placement),
        lambda placement, _: best.offer(placement, "composed by pools"),
        ended=lambda: best.over() or best.now_s() >= until_s,
        rng=rng,
        limit_s=0.05 * best.left_s(),
    )


def _sites(best: _Best, pools: Pools) -> None:
    """Where links bind: machines that are well joined among themselves carry flows of their own."""
    problem = best.problem
    count = len(problem.machines)
    pairs = {(i, j): min(problem.link(i, j), problem.link(j, i)) for j in range(count) for i in range(j)}
    levels = sorted({rate for rate in pairs.values() if rate > 0.0})
    seen: set[frozenset[frozenset[int]]] = set()
    for level in levels[:: max(1, len(levels) // _LEVELS)]:
        site = list(range(count))
        for (i, j), rate in pairs.items():
            if rate >= level and site[i] != site[j]:
                one, other = site[i], site[j]
                site = [one if s == other else s for s in site]
        members = [[i for i in range(count) if site[i] == s] for s in dict.fromkeys(site)]
        key = frozenset(map(frozenset, members))
        if key in seen or sum(map(pools.seconds, members)) > 0.1 * best.left_s():
            continue
        seen.add(key)
        runs = [pools.solve(machines) for machines in members]
        placement = pools.placement({i: run for part in runs for i, run in part.items()})
        if best.offer(placement, "composed by sites"):
            return


def _milp(best: _Best) -> None:
    """Small problems go to HiGHS, which may prove what was found to be best."""
    problem = best.problem
    solved = by_kind(problem, 0.5 * best.left_s(), best=best.tokens_per_s)
    method = "HiGHS, by kind"
    if solved is None and problem.plain and len(problem.machines) * problem.layers <= 400:
        solved = by_machine(problem, 0.4 * best.left_s(), warm=best.placement)
        method = "HiGHS, by machine"
    if solved is None:
        return
    best.bound = min(best.bound, max(solved.bound, best.tokens_per_s))
    if solved.placement is not None:
        best.offer(solved.placement, method)


def _anneal(best: _Best, rng: random.Random, processes: int) -> None:
    """Annealing in rounds, each from the best so far; where links bind, with the MILP on a few machines between."""
    with ExitStack() as stack:
        beside: ProcessPoolExecutor | None = None
        if processes > 1 and best.left_s() > 3.0:
            beside = stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
        while not best.over():
            length_s = min(best.left_s(), max(0.5, 0.25 * best.left_s()))
            seed = rng.randrange(2**32)
            other: Future[Placement] | None = None
            if beside is not None:
                other = beside.submit(walk, best.problem, best.placement, seed + 1, length_s, best.bound)
            best.offer(walk(best.problem, best.placement, seed, length_s, best.bound), "annealing")
            if other is not None:
                best.offer(other.result(), "annealing")
            hard = best.problem.partial or not best.problem.loose_links
            if hard and best.problem.plain and not best.over():
                count = len(best.problem.machines)
                free = rng.sample(range(count), min(_FREE, count))
                slice_s = min(2.0, 0.2 * best.left_s())
                solved = by_machine(best.problem, slice_s, warm=best.placement, free=free)
                if solved.placement is not None:
                    best.offer(solved.placement, "HiGHS on a few machines")


def walk(problem: Problem, start: Placement, seed: int, length_s: float, bound: float) -> Placement:
    """One round of annealing of so many seconds; a function of its own so that another process can run it."""
    began = time.perf_counter()
    annealer = Annealer(problem, start, random.Random(seed), max(bound, 1e-9))
    annealer.walk(
        lambda: min(1.0, (time.perf_counter() - began) / length_s),
        lambda _, value: reaches(value, bound),
    )
    return annealer.best
