"""A plan executed to the letter: the orders on units and lanes are kept, whatever durations turn out to be.

Without disturbance a semi-active plan ends when it says it does; another plan may end earlier, since
everything starts as soon as its order lets it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from physical.scheduling.disturbance import CALM, Disturbance
from physical.scheduling.plan import Move, Plan
from physical.scheduling.trace import Run, Trace


def replay(plan: Plan, disturbance: Disturbance = CALM) -> Trace:
    """Execute the orders of a plan.

    Raises:
        ValueError: the orders contradict each other, the plan is one for bounded memories, or a unit is to be lost (a plan to the letter cannot
            survive that: use a dispatcher).
    """
    if plan.guide is not None or plan.drops:
        raise ValueError("a plan for bounded memories is not replayed: follow it in simulation (Following)")
    if disturbance.losses:
        raise ValueError("a plan cannot be replayed to the letter with a unit lost: simulate a dispatcher")
    followers: list[list[int]] = [[] for _ in range(len(plan.unit) + len(plan.moves))]
    waiting = [0] * len(followers)
    for before, then in itertools.chain(_waits_of_tasks(plan), _waits_of_moves(plan)):
        followers[before].append(then)
        waiting[then] += 1
    return _execute(plan, disturbance, followers, waiting)


def _in_order(plan: Plan) -> list[int]:
    return sorted(range(len(plan.moves)), key=lambda m: (plan.moves[m].start_s, plan.moves[m].end_s, m))


def _brought(plan: Plan) -> dict[tuple[int, int], int]:
    """(version, node) -> the step that brings it there. Steps are tasks, then moves."""
    found: dict[tuple[int, int], int] = {}
    for number in _in_order(plan):
        move = plan.moves[number]
        found.setdefault((move.version, move.target), len(plan.unit) + number)
    return found


def _waits_of_tasks(plan: Plan) -> Iterator[tuple[int, int]]:
    """(step, task that waits for it)."""
    problem, brought = plan.problem, _brought(plan)
    for task, before in enumerate(problem.predecessors):
        for predecessor in before:
            yield predecessor, task
        for version in problem.inputs[task]:
            bringing = brought.get((version, problem.node_of[plan.unit[task]]))
            if bringing is not None:
                yield bringing, task
    for runs in plan.on_units():
        yield from itertools.pairwise(runs)


def _waits_of_moves(plan: Plan) -> Iterator[tuple[int, int]]:
    """(step, move that waits for it)."""
    problem, brought, tasks = plan.problem, _brought(plan), len(plan.unit)
    lanes: dict[tuple[int, int], int] = {}
    for number in _in_order(plan):
        move = plan.moves[number]
        source = brought.get((move.version, move.source))
        if source is not None:
            yield source, tasks + number
        elif problem.producer[move.version] >= 0:
            yield problem.producer[move.version], tasks + number
        for lane in move.lanes:
            if lane in lanes:
                yield lanes[lane], tasks + number
            lanes[lane] = tasks + number


def _execute(plan: Plan, disturbance: Disturbance, followers: list[list[int]], waiting: list[int]) -> Trace:
    problem, tasks = plan.problem, len(plan.unit)
    start = [0.0] * len(waiting)
    end = [0.0] * len(waiting)
    stack = [op for op, count in enumerate(waiting) if count == 0]
    done = 0
    while stack:
        op = stack.pop()
        done += 1
        if op < tasks:
            unit = plan.unit[op]
            takes = problem.durations[op][problem.group_of[unit]] * disturbance.duration_factor(op)
            end[op] = disturbance.end_s(unit, start[op], takes)
        else:
            move = plan.moves[op - tasks]
            route = problem.routes[move.source * problem.nodes + move.target] or ()
            takes = sum(hop.takes_s(problem.nbytes[move.version]) for hop in route)
            end[op] = start[op] + takes * disturbance.transfer_factor(move.version, move.target)
        for follower in followers[op]:
            start[follower] = max(start[follower], end[op])
            waiting[follower] -= 1
            if not waiting[follower]:
                stack.append(follower)
    if done < len(waiting):
        raise ValueError(f"plan of '{plan.scheduler}': its orders contradict each other")
    moves = tuple(
        Move(m.version, m.source, m.target, start[tasks + i], end[tasks + i], m.lanes, m.task)
        for i, m in enumerate(plan.moves)
    )
    runs = tuple(Run(task, plan.unit[task], start[task], end[task]) for task in range(tasks))
    return Trace(problem, plan.scheduler, runs, moves)


def tightened(plan: Plan) -> Plan:
    """The same orders with every start as early as they let it: never longer than before."""
    shifted = replay(plan).as_plan()
    return Plan(
        plan.problem,
        plan.scheduler,
        shifted.unit,
        shifted.start_s,
        shifted.end_s,
        shifted.moves,
        planning_s=plan.planning_s,
    )
