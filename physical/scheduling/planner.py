"""Our own scheduler: the best plan that a time budget finds.

List schedules under many recipes, search around the best (`search.py`), for small graphs the exact model
(`exact.py`) on what is left of the budget; never worse than the passive queue, whose own schedule is among the
candidates.

Where memories are bounded, list schedules count what evictions cost (`residency.py`), and each that may win is carried
out in simulation: its makespan is what comes of it. The first candidate is the best plan without bounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from physical.scheduling.bounds import critical_path_s, warm_up
from physical.scheduling.carried import carried_out
from physical.scheduling.exact import solve
from physical.scheduling.plan import Plan
from physical.scheduling.problem import Problem
from physical.scheduling.queues import Eager
from physical.scheduling.replay import tightened
from physical.scheduling.search import FIRST, Search
from physical.scheduling.simulation import CutOffError, simulate

SMALL = 1000
"""Tasks up to which all first recipes are tried in any case."""
SMALL_BOUNDED = 200
"""The same where memories are bounded and each recipe is carried out."""
RECIPE_SHARE = 0.6
"""Of the budget at most, for recipes; the rest is for the neighbourhood of the best."""


class Planner:
    """The best plan found within a budget.

    `tries` bounds the list schedules made; with it alone (`budget_s` infinite) the same seed gives the same
    plan on any machine. Graphs of at most a thousand tasks get all first recipes, HEFT's among them, however
    short the budget. `clock`: what the budget is counted by (`time.process_time` where others load the machine).
    Where memories are bounded, budget and tries count twice: for the plan without bounds, then for those within.
    `polish_s` is the time for CP-SAT on graphs of at most `polish_tasks` tasks.
    """

    name = "planner"

    def __init__(
        self,
        budget_s: float = 1.0,
        *,
        tries: int | None = None,
        polish_s: float = 0.0,
        polish_tasks: int = 40,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if tries is None and budget_s == math.inf:
            raise ValueError("a planner needs a budget: budget_s, tries, or both")
        self.budget_s, self.tries = budget_s, tries
        self.polish_s, self.polish_tasks = polish_s, polish_tasks
        self._clock = clock

    def plan(self, problem: Problem, seed: int = 0) -> Plan:
        """The best of everything tried. At least one list schedule and the passive queue are, whatever the budget."""
        warm_up()
        began = self._clock()
        if not problem.tasks:
            return Plan(problem, self.name, (), (), (), ())
        search = Search(problem, seed)
        if problem.bounded:
            blind = Planner(self.budget_s, tries=self.tries, clock=self._clock)
            search.offer(search.outcome(blind.plan(problem.unbounded(), seed)))
        since = self._clock() if problem.bounded else began
        search.prepare()
        first = self._clock()
        recipes = search.recipes()
        next(recipes)
        slowest = self._clock() - first
        if not problem.bounded or self._clock() - since < self.budget_s:
            self._passive(search)
        limit = self.tries if self.tries is not None else 1 << 62
        last_recipe = since + RECIPE_SHARE * self.budget_s
        more = True
        path_s = critical_path_s(problem)
        while search.tries < limit and search.best_s > path_s:
            now = self._clock()
            # One more try must fit: tries that are cut off take less.
            few = problem.tasks <= (SMALL_BOUNDED if problem.bounded else SMALL) and search.tries < len(FIRST)
            if now - since + slowest > self.budget_s and not few:
                break
            if more and (now < last_recipe or search.tries < 8) and search.tries < 0.6 * limit:
                more = next(recipes, False) is None
            else:
                search.improve()
        best = search.best
        if best is None:
            raise RuntimeError("the first recipe gives a plan")
        best = self._polished(best if problem.bounded else tightened(best))
        return replace(best, scheduler=self.name, planning_s=self._clock() - began)

    def _passive(self, search: Search) -> None:
        """The passive queue's own schedule, unless it is known to be worse."""
        try:
            trace = simulate(search.problem, Eager(), cutoff_s=search.best_s)
        except CutOffError:
            return
        made = trace.as_plan()
        search.offer(search.outcome(made) if search.problem.bounded else tightened(made))

    def _polished(self, plan: Plan) -> Plan:
        if self.polish_s <= 0.0 or len(plan.unit) > self.polish_tasks:
            return plan
        found = solve(plan.problem, hint=plan, limit_s=self.polish_s).plan
        if found is not None and plan.problem.bounded:  # the exact model knows no bounds
            found = carried_out(plan.problem, found, plan.makespan_s)
        return found if found is not None and found.makespan_s < plan.makespan_s else plan
