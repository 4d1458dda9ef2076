"""A plan: which unit runs which task when, and which version moves when over which lanes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from physical.scheduling.problem import Problem
from physical.scheduling.room import Drop

Lane = tuple[int, int]
"""(link, stream of it)."""


@dataclass(frozen=True, slots=True)
class Move:
    """One hop of a version between two memory nodes."""

    version: int
    source: int
    target: int
    start_s: float
    end_s: float
    lanes: tuple[Lane, ...]
    task: int
    """The task that it was brought for, the first one if several want it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Placements of all tasks. Values by task index; times are virtual seconds from the start."""

    problem: Problem = field(repr=False, compare=False)
    scheduler: str
    unit: tuple[int, ...]
    start_s: tuple[float, ...]
    end_s: tuple[float, ...]
    moves: tuple[Move, ...]
    drops: tuple[Drop, ...] = ()
    """Copies that give way in memories that are bounded."""
    guide: Plan | None = field(default=None, repr=False, compare=False)
    """Where memories are bounded: the orders that came to these times when they were followed in simulation. Whoever
    follows this plan follows those, and without disturbance gets the same times. None: its own."""
    planning_s: float = field(default=0.0, compare=False)
    """How long it took to find, by the caller's clock."""

    @property
    def makespan_s(self) -> float:
        """When the last task ends."""
        return max(self.end_s, default=0.0)

    def on_units(self) -> list[list[int]]:
        """Tasks of each unit in order of their start."""
        result: list[list[int]] = [[] for _ in range(self.problem.units)]
        for task in sequence(self):
            result[self.unit[task]].append(task)
        return result


def sequence(plan: Plan) -> list[int]:
    """All tasks by start; of those that start together, the one first that others may wait for."""
    place = positions(plan.problem.order)
    return sorted(range(len(plan.unit)), key=lambda t: (plan.start_s[t], plan.end_s[t], place[t]))


def positions(order: Sequence[int]) -> list[int]:
    """The inverse of a permutation."""
    place = [0] * len(order)
    for number, task in enumerate(order):
        place[task] = number
    return place
