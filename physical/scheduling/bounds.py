"""What no schedule can beat: the area bound and the critical path."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from physical.scheduling.problem import Problem


@dataclass(frozen=True, slots=True)
class Area:
    """The area bound: all work shared out fractionally, no dependencies, no transfers."""

    bound_s: float
    price: tuple[float, ...]
    """Per group: by how much the bound falls for one more second of it (the dual); 0 where there is time left."""
    classes: tuple[tuple[float, ...], ...]
    """Distinct rows of durations."""
    share: tuple[tuple[float, ...], ...]
    """Per class: how much of it goes to each group."""


def area(
    problem: Problem, *, tasks: Sequence[int] | None = None, sample: int | None = None, seed: int = 0
) -> Area:
    """Solve the area linear program with HiGHS, of all tasks or some.

    `sample`: with more distinct tasks than that, of a random sample of so many scaled up (an estimate, for
    its prices; no bound).
    """
    rows = problem.durations if tasks is None else [problem.durations[t] for t in tasks]
    counts: Counter[tuple[float, ...]] = Counter(rows)
    scale = 1.0
    if sample is not None and len(counts) > sample:
        counts = Counter(random.Random(seed).sample(rows, sample))
        scale = len(rows) / sample
    classes = sorted(counts)
    groups = len(problem.groups)
    columns = [(c, g) for c, row in enumerate(classes) for g, d in enumerate(row) if d < math.inf]
    if not columns:
        return Area(0.0, (0.0,) * groups, (), ())
    wanted = [counts[row] * scale for row in classes]
    objective, values, duals = _solved(problem, classes, columns, wanted)
    share = [[0.0] * groups for _ in classes]
    for (c, g), value in zip(columns, values, strict=False):
        share[c][g] = value
    price = tuple(max(0.0, -dual) for dual in duals[:groups])
    return Area(objective, price, tuple(classes), tuple(map(tuple, share)))


def _solved(
    problem: Problem,
    classes: Sequence[tuple[float, ...]],
    columns: Sequence[tuple[int, int]],
    wanted: Sequence[float],
) -> tuple[float, list[float], list[float]]:
    """(objective, values of the columns and the span, duals of the groups)."""
    # Here, since scipy takes longer to import than --help should. Its HiGHS is its own: the highspy package
    # and OR-tools bring shared libraries of one name that no process can hold both of.
    import numpy as np  # noqa: PLC0415
    from scipy.optimize import linprog  # noqa: PLC0415
    from scipy.sparse import csr_matrix  # noqa: PLC0415

    groups, width = len(problem.groups), len(columns) + 1
    of_class = np.array([c for c, _ in columns])
    of_group = np.array([g for _, g in columns])
    work = np.array([classes[c][g] for c, g in columns])
    units = np.array([float(len(group.units)) for group in problem.groups])
    index = np.arange(len(columns))
    at = np.concatenate([of_group, np.arange(groups)]), np.concatenate([index, np.full(groups, width - 1)])
    busy: Any = csr_matrix((np.concatenate([work, -units]), at), shape=(groups, width))
    all_of_it: Any = csr_matrix((np.ones(len(columns)), (of_class, index)), shape=(len(classes), width))
    cost = np.zeros(width)
    cost[-1] = 1.0
    found: Any = linprog(
        cost, A_ub=busy, b_ub=np.zeros(groups), A_eq=all_of_it, b_eq=np.array(wanted), method="highs"
    )
    if found.status != 0:
        raise ValueError(f"area bound of graph '{problem.graph.name}': HiGHS says: {found.message}")
    return float(found.fun), [float(x) for x in found.x], [float(y) for y in found.ineqlin.marginals]


def warm_up() -> None:
    """Import what the area program needs, so that no time budget pays for it."""
    import scipy.optimize  # noqa: F401, PLC0415


def heads_and_tails_s(problem: Problem) -> tuple[list[float], list[float]]:
    """Per task: the least time before it can start, and from its end to the end of all."""
    quickest = [min(row) for row in problem.durations]
    head, tail = [0.0] * problem.tasks, [0.0] * problem.tasks
    for task in problem.order:
        head[task] = max((head[p] + quickest[p] for p in problem.predecessors[task]), default=0.0)
    for task in reversed(problem.order):
        tail[task] = max((tail[s] + quickest[s] for s in problem.successors[task]), default=0.0)
    return head, tail


def staged_bound_s(problem: Problem, steps: int = 8) -> float:
    """A bound at least as tight as the larger of area and critical path: of every set of tasks that start
    late and have much after them, least head plus area plus least tail (`steps` squared sets are tried)."""
    head, tail = heads_and_tails_s(problem)
    best = lower_bound_s(problem)
    longest = critical_path_s(problem)
    for i in range(steps):
        for j in range(steps):
            some = [
                t
                for t in range(problem.tasks)
                if head[t] >= 0.5 * longest * i / steps and tail[t] >= 0.5 * longest * j / steps
            ]
            if some:
                around = min(head[t] for t in some) + min(tail[t] for t in some)
                best = max(best, around + area(problem, tasks=some).bound_s)
    return best


def critical_path_s(problem: Problem) -> float:
    """The longest chain, each task on its best unit, without transfers."""
    end = [0.0] * problem.tasks
    for task in problem.order:
        begins = max((end[p] for p in problem.predecessors[task]), default=0.0)
        end[task] = begins + min(problem.durations[task])
    return max(end, default=0.0)


def lower_bound_s(problem: Problem) -> float:
    """The larger of area bound and critical path."""
    return max(area(problem).bound_s, critical_path_s(problem))


def shares_s(problem: Problem, prices: Area) -> list[tuple[float, ...]]:
    """Per task and group: what it costs the area bound to run the task there rather than where it is
    cheapest (the reduced cost), in seconds of the dearest group. 0 where the linear program would put it."""
    dearest = max(prices.price, default=0.0)
    known: dict[tuple[float, ...], tuple[float, ...]] = {}
    result = []
    for row in problem.durations:
        if row not in known:
            if dearest <= 0.0:
                known[row] = (0.0,) * len(row)
            else:
                value = [
                    d * p / dearest if d < math.inf else math.inf
                    for d, p in zip(row, prices.price, strict=True)
                ]
                least = min(value)
                known[row] = tuple(v - least if v < math.inf else 0.0 for v in value)
        result.append(known[row])
    return result
