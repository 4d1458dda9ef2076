"""A dispatcher as a scheduler: what it would do if everything went as expected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from physical.scheduling.plan import Plan
from physical.scheduling.port import Dispatcher
from physical.scheduling.problem import Problem
from physical.scheduling.replay import tightened
from physical.scheduling.simulation import simulate


class Online:
    """Simulates a dispatcher and keeps its orders, every start as early as they let it; where memories are bounded, its times."""

    def __init__(self, make: Callable[[], Dispatcher]) -> None:
        self._make = make
        self.name = make().name

    def plan(self, problem: Problem, seed: int = 0) -> Plan:  # noqa: ARG002  # nothing here is random
        """The plan that the dispatcher arrives at."""
        made = simulate(problem, self._make()).as_plan()
        return replace(made if problem.bounded else tightened(made), scheduler=self.name)
