"""Small placement problems, and their optimum by trying everything."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from physical.placement.flow import tokens_per_s
from physical.placement.problem import IDLE, SINK, SOURCE, Machine, Placement, Problem, Run


def random_problem(
    seed: int,
    *,
    machines: int = 4,
    layers: int = 5,
    kinds: int = 2,
    falling: bool = True,
    links: bool = False,
    partial: bool = False,
) -> Problem:
    rng = random.Random(seed)
    tables = []
    for _ in range(kinds):
        most = rng.randint(1, layers)
        peak = rng.uniform(50.0, 300.0)
        rates = [peak / k * (1.0 if falling else rng.uniform(0.5, 1.5)) for k in range(1, most + 1)]
        tables.append(tuple(rates))
    made = []
    for i in range(machines):
        kind = rng.randrange(kinds)
        made.append(Machine(f"m{i}", f"kind{kind}", tables[kind]))
    pairs = {}
    if links:
        ends = [SOURCE, *range(machines)]
        pairs = {
            (a, b): rng.choice((0.0, 20.0, 60.0, 400.0))
            for a in ends
            for b in [*range(machines), SINK]
            if a != b and (a, b) != (SOURCE, SINK)
        }
    return Problem(layers, tuple(made), pairs, default_link=0.0 if links else float("inf"), partial=partial)


def all_placements(problem: Problem) -> Iterator[Placement]:
    choices = [
        [
            IDLE,
            *(Run(s, k) for k in range(1, problem.most(i) + 1) for s in range(problem.layers - k + 1)),
        ]
        for i in range(len(problem.machines))
    ]
    yield from itertools.product(*choices)


def best_by_trying(problem: Problem) -> float:
    return max(tokens_per_s(problem, placement) for placement in all_placements(problem))
