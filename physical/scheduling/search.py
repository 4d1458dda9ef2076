"""Search over list schedules: which rank, which bias, and then around the best plan found.

A *recipe* says how priorities and biases are made. The search first walks over recipes, one setting at a time, then
alternates between noise on the ranks and large-neighbourhood moves on the incumbent: its order and units are
kept but for a part that is chosen anew. Decoding stops as soon as it cannot win any more.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from physical.scheduling.bounds import Area, area, shares_s
from physical.scheduling.carried import carried_out
from physical.scheduling.decode import Bias
from physical.scheduling.plan import Plan
from physical.scheduling.problem import Problem
from physical.scheduling.ranks import (
    edge_s,
    harmonic_durations,
    mean_durations,
    optimistic_costs,
    quickest_durations,
    upward,
)
from physical.scheduling.residency import decoder_of

SAMPLE = 600
"""Distinct tasks up to which the area program is solved whole; beyond, a sample gives its prices."""

TOLERANCES = (0.0, 0.003, 0.01, 0.03)
"""A neighbour may be longer by up to some of these shares and still be gone on from..."""
DRIFT = 0.08
"""...but never further from the best than about this."""
PATIENCE = 120
"""Tries without a gain until the search starts again from the best plan or from somewhere else."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make one list schedule."""

    rank: str = "harmonic"
    """Durations behind the upward rank: mean, harmonic, quickest; or optimistic, PEFT's rank and bias."""
    transfers: bool = True
    """Do transfers count in the rank?"""
    area: float = 8.0
    """Weight of the reduced costs of the area program, which keep kernels on the kinds that suit them."""
    moves: float = 16.0
    """Price of a second on a link when units are compared."""
    readiness: float = 0.0
    """How much earlier-ready tasks are preferred."""


SETTINGS: dict[str, tuple[object, ...]] = {
    "rank": ("mean", "harmonic", "quickest", "optimistic"),
    "transfers": (False, True),
    "area": (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0),
    "moves": (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 24.0),
    "readiness": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0),
}
HEFT = Recipe(rank="mean", area=0.0, moves=0.0)
FIRST = (
    Recipe(),
    Recipe(rank="optimistic", area=0.0, moves=0.0),
    Recipe(area=4.0, readiness=1.0),
    Recipe(rank="quickest", area=4.0, moves=4.0),
    HEFT,
)
"""Few, since a large graph in a short budget gets no further than these."""
NEAR_BOUND = 1.1
"""A first schedule further than this from the area bound has HEFT tried next: a large graph may get no third try."""


ESTIMATE_SLACK = 1.1
"""Where memories are bounded a list schedule is carried out if it may be that much too pessimistic."""


class Search:
    """Improves a plan one try at a time. Deterministic for a seed."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem = problem
        self.random = random.Random(seed)
        self.decoder = decoder_of(problem)
        self._slack = ESTIMATE_SLACK if problem.bounded else 1.0
        self.best: Plan | None = None
        self.recipe = FIRST[0]
        self.tries = 0
        self._ranks: dict[tuple[str, bool], list[float]] = {}
        self._biases: dict[tuple[bool, float], Bias | None] = {}
        self._reduced: list[tuple[float, ...]] | None = None
        self._bound_s = 0.0
        """Of the area program; an estimate where it was solved for a sample."""
        self._optimistic: list[tuple[float, ...]] | None = None
        self._edges = edge_s(problem)
        self._current: Plan | None = None
        self._stale = 0
        self._tried: set[Recipe] = set()
        moves: tuple[Callable[[Plan], tuple[list[float], Bias | None]], ...] = (
            self._window,
            self._subset,
            self._ranked,
            self._critical,
        )
        self._moves = moves
        self._worth = [1.0] * (len(moves) + 1)

    @property
    def best_s(self) -> float:
        """Makespan of the best plan; infinite before the first."""
        return self.best.makespan_s if self.best is not None else math.inf

    def offer(self, plan: Plan | None) -> bool:
        """Take a plan if it is better than all before."""
        if plan is None or plan.makespan_s >= self.best_s:
            return False
        self.best = self._current = plan
        self._stale = 0
        return True

    def prepare(self) -> None:
        """Work out what the first recipe needs."""
        self._rank(FIRST[0])
        self._bias(FIRST[0])

    def recipes(self) -> Iterator[None]:
        """Try recipes: a few first ones, then neighbours of the best until none is left."""
        self._try(FIRST[0])
        yield
        far = self.best_s > NEAR_BOUND * self._bound_s
        for recipe in (HEFT, *FIRST) if far else FIRST:
            if recipe not in self._tried:
                self._try(recipe)
                yield
        while True:
            near = [
                replace(self.recipe, **{key: value})  # type: ignore[arg-type]
                for key, values in SETTINGS.items()
                for value in values
            ]
            near = [recipe for recipe in dict.fromkeys(near) if recipe not in self._tried]
            if not near:
                return
            self.random.shuffle(near)
            before = self.best
            for recipe in near:
                self._try(recipe)
                yield
                if self.best is not before:
                    break

    def improve(self) -> None:
        """One try around the best plan."""
        chosen = self.random.choices(range(len(self._worth)), self._worth)[0]
        before = self.best_s
        if chosen == len(self._moves):
            self._noise()
        else:
            self._neighbour(chosen)
        gained = self.best_s < before
        self._worth[chosen] = max(0.15, 0.9 * self._worth[chosen] + (1.0 if gained else 0.0))

    def _try(self, recipe: Recipe) -> None:
        if recipe in self._tried:
            return
        self._tried.add(recipe)
        if self.offer(self._decode(recipe, self._rank(recipe))):
            self.recipe = recipe

    def _decode(self, recipe: Recipe, rank: list[float]) -> Plan | None:
        self.tries += 1
        plan = self.decoder.run(
            rank,
            bias=self._bias(recipe),
            cutoff_s=self.best_s * self._slack,
            by_readiness=recipe.readiness,
            move_price=recipe.moves,
            name="planner",
        )
        return self.outcome(plan, self.best_s)

    def outcome(self, plan: Plan | None, cutoff_s: float = math.inf) -> Plan | None:
        """What comes of a list schedule where memories are bounded; elsewhere it is what it says."""
        if plan is None or not self.problem.bounded:
            return plan
        return carried_out(self.problem, plan, cutoff_s)

    def _noise(self) -> None:
        width = self.random.choice((0.01, 0.03, 0.1))
        gauss = self.random.gauss
        rank = [value * (1.0 + width * gauss(0.0, 1.0)) for value in self._rank(self.recipe)]
        self.offer(self._decode(self.recipe, rank))

    def _neighbour(self, chosen: int) -> None:
        """Decode the incumbent's order with a part of it open; sometimes go on from slightly worse."""
        current = self._current or self.best
        if current is None:
            return
        priority, bias = self._moves[chosen](current)
        self.tries += 1
        # A plan as long as the current one is worth going on from: plateaus are wide.
        tolerance = self.random.expovariate(1.0) * self.random.choice(TOLERANCES) + 1e-9
        base = min(current.makespan_s, self.best_s * (1.0 + DRIFT))
        cutoff_s = base * (1.0 + tolerance)
        plan = self.decoder.run(priority, bias=bias, cutoff_s=cutoff_s * self._slack, name="planner")
        plan = self.outcome(plan, cutoff_s)
        self._stale += 1
        if plan is not None and not self.offer(plan):
            self._current = plan
        if self._stale >= PATIENCE:
            self._stale = 0
            self._current = self.best if self.random.random() < 0.7 else self._fresh()

    def _fresh(self) -> Plan | None:
        """Somewhere else to go on from: the best recipe with much noise."""
        gauss = self.random.gauss
        rank = [value * (1.0 + 0.2 * gauss(0.0, 1.0)) for value in self._rank(self.recipe)]
        self.tries += 1
        cutoff_s = 1.15 * self.best_s
        plan = self.decoder.run(
            rank, bias=self._bias(self.recipe), move_price=self.recipe.moves, cutoff_s=cutoff_s
        )
        return self.outcome(plan, cutoff_s)

    # Parts of the incumbent that are chosen anew: each gives priorities and the groups that are open.
    def _window(self, plan: Plan) -> tuple[list[float], Bias | None]:
        """Tasks of a stretch of time."""
        length = plan.makespan_s * self.random.choice((0.05, 0.1, 0.2, 0.4))
        begin = self.random.uniform(-length, plan.makespan_s)
        free = {t for t, s in enumerate(plan.start_s) if begin <= s < begin + length}
        width = length * self.random.choice((0.1, 0.3, 1.0))
        return self._shaken(plan, free, width), self._fixed(plan, free)

    def _subset(self, plan: Plan) -> tuple[list[float], Bias | None]:
        """A few tasks from anywhere."""
        count = min(self.problem.tasks, self.random.choice((1, 2, 4, 8, 16, 32)))
        free = set(self.random.sample(range(self.problem.tasks), count))
        return self._shaken(plan, free, 0.2 * plan.makespan_s), self._fixed(plan, free)

    def _ranked(self, plan: Plan) -> tuple[list[float], Bias | None]:
        """The order by upward rank as units are now; all units open, or none."""
        problem = self.problem
        group = [problem.group_of[unit] for unit in plan.unit]
        rank = [problem.durations[t][group[t]] for t in range(problem.tasks)]
        producer, groups = problem.producer, problem.groups
        for task in reversed(problem.order):
            longest = 0.0
            for follower in problem.successors[task]:
                way = rank[follower]
                if groups[group[follower]].node != groups[group[task]].node:
                    way += max(
                        (self._edges[v] for v in problem.inputs[follower] if producer[v] == task), default=0.0
                    )
                longest = max(longest, way)
            rank[task] += longest
        width = self.random.choice((0.0, 0.01, 0.05))
        gauss = self.random.gauss
        rank = [value * (1.0 + width * gauss(0.0, 1.0)) for value in rank]
        free: set[int] = set()
        if self.random.random() < 0.5:
            share = self.random.choice((0.05, 0.2))
            free = {t for t in range(problem.tasks) if self.random.random() < share}
        return rank, self._fixed(plan, free)

    def _critical(self, plan: Plan) -> tuple[list[float], Bias | None]:
        """Tasks of the chain that ends last, pulled forward."""
        chain = self._chain(plan)
        count = self.random.randint(1, max(1, min(len(chain), 12)))
        free = set(self.random.sample(chain, count))
        ahead = plan.makespan_s * self.random.choice((0.02, 0.05, 0.2))
        priority = [-start for start in plan.start_s]
        for task in free:
            priority[task] += ahead * self.random.random()
        return priority, self._fixed(plan, free)

    def _chain(self, plan: Plan) -> list[int]:
        """From the task that ends last back over whatever ended latest before each start."""
        problem = self.problem
        previous: dict[int, int] = {}
        for tasks in plan.on_units():
            previous.update(zip(tasks[1:], tasks, strict=False))
        task = max(range(problem.tasks), key=lambda t: plan.end_s[t])
        chain = [task]
        while True:
            before = [*problem.predecessors[task], *([previous[task]] if task in previous else [])]
            if not before or len(chain) > problem.tasks:
                return chain
            task = max(before, key=lambda t: plan.end_s[t])
            chain.append(task)

    def _shaken(self, plan: Plan, free: set[int], width_s: float) -> list[float]:
        gauss = self.random.gauss
        return [
            -start + (width_s * gauss(0.0, 1.0) if task in free else 0.0)
            for task, start in enumerate(plan.start_s)
        ]

    def _fixed(self, plan: Plan, free: set[int]) -> Bias:
        """Only the group of now, but for the free tasks: those may go anywhere, or, as often, must go to
        some group drawn, since the earliest end is not always the best."""
        groups = range(len(self.problem.groups))
        only = [tuple(0.0 if g == own else math.inf for g in groups) for own in groups]
        rows = [only[self.problem.group_of[unit]] for unit in plan.unit]
        for task in sorted(free):
            if self.random.random() < 0.5:
                rows[task] = (0.0,) * len(groups)
            else:
                able = [g for g in groups if self.problem.durations[task][g] < math.inf]
                rows[task] = only[self.random.choice(able)]
        return rows

    # What recipes are made of.
    def _rank(self, recipe: Recipe) -> list[float]:
        key = (recipe.rank, recipe.transfers)
        if key not in self._ranks:
            self._ranks[key] = self._make_rank(recipe)
        return self._ranks[key]

    def _make_rank(self, recipe: Recipe) -> list[float]:
        if recipe.rank == "optimistic":
            weights = [len(group.units) for group in self.problem.groups]
            result = []
            for row in self._costs():
                able = [(c, w) for c, w in zip(row, weights, strict=True) if c < math.inf]
                result.append(sum(c * w for c, w in able) / sum(w for _, w in able))
            return result
        durations = {
            "mean": mean_durations,
            "harmonic": harmonic_durations,
            "quickest": quickest_durations,
        }[recipe.rank](self.problem)
        return upward(self.problem, durations, self._edges if recipe.transfers else None)

    def _costs(self) -> list[tuple[float, ...]]:
        if self._optimistic is None:
            self._optimistic = optimistic_costs(self.problem)
        return self._optimistic

    def _bias(self, recipe: Recipe) -> Bias | None:
        key = (recipe.rank == "optimistic", recipe.area)
        if key not in self._biases:
            self._biases[key] = self._make_bias(key[1], optimistic=key[0])
        return self._biases[key]

    def _make_bias(self, weight: float, *, optimistic: bool) -> Bias | None:
        if not weight:
            return self._costs() if optimistic else None
        if self._reduced is None:
            prices: Area = area(self.problem, sample=SAMPLE)
            self._reduced = shares_s(self.problem, prices)
            self._bound_s = prices.bound_s
        rows = [tuple(weight * value for value in row) for row in self._reduced]
        if optimistic:
            rows = [
                tuple(a + b for a, b in zip(x, y, strict=True))
                for x, y in zip(rows, self._costs(), strict=True)
            ]
        return rows
