"""What comes of a plan when it is followed in simulation: plans for memories that are bounded are judged by that."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from physical.scheduling.following import Following
from physical.scheduling.plan import Plan
from physical.scheduling.port import Scheduler
from physical.scheduling.problem import Problem
from physical.scheduling.simulation import CutOffError, simulate


def carried_out(problem: Problem, plan: Plan, cutoff_s: float = math.inf) -> Plan | None:
    """The plan with the times, moves and evictions that it comes to on a problem with bounds; None if it is not over
    before `cutoff_s`. Following the result gives the same times again."""
    guide = replace(plan.guide or plan, problem=problem)
    try:
        trace = simulate(problem, Following(guide), cutoff_s=cutoff_s)
    except CutOffError:
        return None
    return replace(trace.as_plan(), scheduler=plan.scheduler, guide=guide)


def compared(problem: Problem, scheduler: Scheduler, seed: int = 0) -> dict[str, float]:
    """Makespans on a problem with bounds: of the scheduler's plan without them, carried out with the least recently
    used going first (`ignored`) or with foresight (`foreseen`), and of its plan that knows them (`known`)."""
    blind = replace(scheduler.plan(problem.unbounded(), seed), problem=problem)
    return {
        "ignored": simulate(problem, Following(blind, foresight=False)).makespan_s,
        "foreseen": simulate(problem, Following(blind)).makespan_s,
        "known": scheduler.plan(problem, seed).makespan_s,
    }


def best_of(problem: Problem, plans: Iterable[Plan]) -> Plan:
    """What comes of the best of some plans; the first of those that are as good."""
    best: Plan | None = None
    for plan in plans:
        best = carried_out(problem, plan, best.makespan_s if best is not None else math.inf) or best
    if best is None:
        raise ValueError("no plan was given")
    return best
