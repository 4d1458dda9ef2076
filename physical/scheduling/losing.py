"""A unit is lost in a simulation: what it had taken is cut off, and with the last unit of a memory its contents go."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, cast

from physical.scheduling.plan import Move
from physical.scheduling.recovery import held_back, to_redo
from physical.scheduling.trace import Run

if TYPE_CHECKING:
    from physical.scheduling.simulation import Simulation


def lose(state: Simulation, unit: int) -> list[int]:
    """Take a unit out; tasks that may be ready again.

    Raises:
        DataLostError: data went with it and cannot be computed again.
    """
    if state.dead[unit]:
        return []
    problem, node = state.problem, state.problem.node_of[unit]
    state.dead[unit] = True
    state.lost.append((unit, state.clock_s))
    again = _cut_off(state, unit)
    last = all(state.dead[u] for u in range(problem.units) if problem.node_of[u] == node)
    if last and node not in problem.home and node not in state.relays:
        _forget(state, node)
        _undo(state)
        for other in range(problem.units):
            task = state.taken[other]
            if task is not None and state.started[other] is None and state.waiting[task]:
                again += _cut_off(state, other)
        for (version, target), waiting in list(state.waits_for.items()):
            if waiting:
                state.fetch_again(version, target, -float("inf"))
    taken, done = state.taken, state.done
    withdrawn = [t for t in range(problem.tasks) if state.told[t] and not done[t] and t not in taken]
    gone = [t for t in withdrawn if state.waiting[t] or t in again]
    for task in gone:
        state.told[task] = False
    state.dispatcher.lost(unit, gone)
    return [t for t in range(problem.tasks) if not done[t] and not state.waiting[t] and not state.told[t]]


def nowhere(state: Simulation, version: int) -> bool:
    """Is a version in no memory, and not on its way to one?"""
    if state.contents.copies(version):
        return False
    return not any(
        what == "arrived" and cast("Move", it).version == version for _, _, what, it in state.events
    )


def _cut_off(state: Simulation, unit: int) -> list[int]:
    """What a unit has taken."""
    task, began = state.taken[unit], state.started[unit]
    state.epoch[unit] += 1
    if state.room is not None:
        state.room.release(unit)
        state.stalled = [other for other in state.stalled if other != unit]
    state.taken[unit] = state.started[unit] = None
    for waiting in state.waits_for.values():
        if unit in waiting:
            waiting.remove(unit)
    if task is None:
        return []
    if began is not None:
        state.runs.append(Run(task, unit, began, state.clock_s, completed=False))
    return [task]


def _forget(state: Simulation, node: int) -> None:
    """A memory is gone, with what was to go there or come from there."""
    state.node_gone[node] = True
    state.contents.forget(node)
    for hop, queue in state.transfers.queues.items():
        if hop.target == node:
            queue.clear()
    coming = state.transfers.coming
    for key in [key for key in coming if key[1] == node]:
        del coming[key]
    under_way = []
    for event in state.events:
        if event[2] == "arrived":
            move = cast("Move", event[3])
            if move.source == node:
                if state.room is not None:
                    state.room.arrives(move.version, move.source, move.target)
                coming.pop((move.version, move.target), None)
                for link, lane in move.lanes:
                    heapq.heappush(state.transfers.free[link], lane)
                continue
        under_way.append(event)
    state.events = under_way
    heapq.heapify(state.events)


def _undo(state: Simulation) -> None:
    """Mark what must be computed again because its result is nowhere any more."""
    problem = state.problem
    newest = state.contents.newest()
    running = {t for u, t in enumerate(state.taken) if t is not None and state.started[u] is not None}
    state.held_back.clear()
    for task in running:
        for version in problem.outputs[task]:
            newest[problem.version_data[version]] = version
    for task in to_redo(problem, state.done, running, newest, lambda version: nowhere(state, version)):
        state.done[task] = False
        state.told[task] = False
        state.finished -= 1
        for version in problem.outputs[task]:
            state.exists[version] = False
    for task in range(problem.tasks):
        if not state.done[task]:
            state.waiting[task] = sum(not state.done[p] for p in problem.predecessors[task])
    for before, after in held_back(problem, state.done):
        state.held_back[before].append(after)
        state.waiting[after] += 1
