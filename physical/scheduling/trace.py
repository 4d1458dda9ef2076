"""What really happened in an execution, and the check that it could have happened."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field

from physical.scheduling.plan import Move, Plan
from physical.scheduling.problem import Problem
from physical.scheduling.room import Drop

SLACK = 1e-9
"""Relative tolerance on times: sums in another order differ in the last bits."""


class InvalidScheduleError(AssertionError):
    """A schedule that breaks a rule; the message names rule, task and unit."""


@dataclass(frozen=True, slots=True)
class Run:
    """One go of a unit at a task."""

    task: int
    unit: int
    start_s: float
    end_s: float
    completed: bool = True


@dataclass(frozen=True, slots=True)
class Trace:
    """Runs and moves as they happened. A task that a lost unit took down with it has several runs."""

    problem: Problem = field(repr=False, compare=False)
    name: str
    runs: tuple[Run, ...]
    moves: tuple[Move, ...]
    lost: tuple[tuple[int, float], ...] = ()
    """(unit, when)."""
    stolen: int = 0
    """Tasks that ran elsewhere than planned."""
    drops: tuple[Drop, ...] = ()
    """Copies that gave way in bounded memories."""

    @property
    def makespan_s(self) -> float:
        """When the last run ended."""
        return max((run.end_s for run in self.runs), default=0.0)

    @property
    def moved_bytes(self) -> float:
        """Over all hops."""
        return sum(self.problem.nbytes[move.version] for move in self.moves)

    def idle_share(self) -> float:
        """Share of unit time up to the makespan in which nothing ran."""
        total = self.makespan_s * self.problem.units
        return 1.0 - sum(run.end_s - run.start_s for run in self.runs) / total if total else 0.0

    def as_plan(self) -> Plan:
        """The last completed run of each task."""
        last = {run.task: run for run in self.runs if run.completed}
        chosen = [last[task] for task in range(self.problem.tasks)]
        return Plan(
            self.problem,
            self.name,
            tuple(run.unit for run in chosen),
            tuple(run.start_s for run in chosen),
            tuple(run.end_s for run in chosen),
            self.moves,
            self.drops,
        )


def trace_of(plan: Plan) -> Trace:
    """A plan as if it had been executed to the letter."""
    runs = tuple(
        Run(task, unit, start, end)
        for task, (unit, start, end) in enumerate(zip(plan.unit, plan.start_s, plan.end_s, strict=True))
    )
    return Trace(plan.problem, plan.scheduler, runs, plan.moves, drops=plan.drops)


def check(trace: Trace, *, exact: bool = False) -> Trace:
    """Return the trace if it is valid.

    Every task completes; runs of a unit do not overlap; a run starts after its predecessors ended and with
    every input present in its memory; a move starts where the version is, no link carries more than it has
    streams, and its lanes never carry two at once. With `exact`, runs and moves take exactly as long as
    expected, otherwise any time.

    Raises:
        InvalidScheduleError: naming the rule that is broken.
    """
    slack = SLACK * max(trace.makespan_s, 1e-12)
    _check_complete(trace)
    _check_units(trace, slack)
    _check_order(trace, slack)
    _check_lanes(trace, slack)
    _check_presence(trace, slack)
    if trace.problem.bounded and not trace.lost:
        _check_room(trace, slack)
    if exact:
        _check_durations(trace, slack)
    return trace


def _name(problem: Problem, task: int) -> str:
    return f"task '{problem.graph.tasks[task].name}'"


def _check_complete(trace: Trace) -> None:
    completed = {run.task for run in trace.runs if run.completed}
    for task in range(trace.problem.tasks):
        if task not in completed:
            raise InvalidScheduleError(f"{_name(trace.problem, task)} never completed")
    if not trace.lost and len(trace.runs) != trace.problem.tasks:
        raise InvalidScheduleError(
            f"{len(trace.runs)} runs of {trace.problem.tasks} tasks though no unit was lost"
        )


def _check_units(trace: Trace, slack: float) -> None:
    problem = trace.problem
    lost = dict(trace.lost)
    of_unit: dict[int, list[Run]] = defaultdict(list)
    for run in trace.runs:
        of_unit[run.unit].append(run)
        if problem.durations[run.task][problem.group_of[run.unit]] == float("inf"):
            raise InvalidScheduleError(
                f"{_name(problem, run.task)} ran on '{problem.machine.units[run.unit].name}', which cannot run it"
            )
        if run.start_s < 0.0 or run.end_s > lost.get(run.unit, float("inf")) + slack:
            raise InvalidScheduleError(f"{_name(problem, run.task)} ran outside the life of its unit")
    for unit, runs in of_unit.items():
        runs.sort(key=lambda run: (run.start_s, run.end_s))
        for before, after in itertools.pairwise(runs):
            if after.start_s < before.end_s - slack:
                raise InvalidScheduleError(
                    f"unit '{problem.machine.units[unit].name}' runs {_name(problem, before.task)} and "
                    f"{_name(problem, after.task)} at once"
                )


def _check_order(trace: Trace, slack: float) -> None:
    first_end: dict[int, float] = {}
    for run in trace.runs:
        if run.completed:
            first_end[run.task] = min(run.end_s, first_end.get(run.task, float("inf")))
    for run in trace.runs:
        for before in trace.problem.predecessors[run.task]:
            if first_end[before] > run.start_s + slack:
                raise InvalidScheduleError(
                    f"{_name(trace.problem, run.task)} starts before {_name(trace.problem, before)} has ended"
                )


def _check_lanes(trace: Trace, slack: float) -> None:
    of_lane: dict[tuple[int, int], list[Move]] = defaultdict(list)
    for move in trace.moves:
        for link, lane in move.lanes:
            streams = trace.problem.streams[link]
            if streams is None or not 0 <= lane < streams:
                raise InvalidScheduleError(
                    f"link '{trace.problem.machine.links[link].name}' has no stream {lane} (it has {streams})"
                )
            of_lane[link, lane].append(move)
    for (link, _), moves in of_lane.items():
        moves.sort(key=lambda move: (move.start_s, move.end_s))
        for before, after in itertools.pairwise(moves):
            if after.start_s < before.end_s - slack:
                raise InvalidScheduleError(
                    f"link '{trace.problem.machine.links[link].name}' carries two transfers over one stream at once"
                )
    for move in trace.moves:
        route = trace.problem.routes[move.source * trace.problem.nodes + move.target]
        if route is None or len(route) != 1:
            raise InvalidScheduleError(
                f"a move goes from node {move.source} to {move.target}, which no hop joins"
            )
        if tuple(link for link, _ in move.lanes) != route[0].links:
            raise InvalidScheduleError("a move does not hold the links of its hop")


def _check_presence(trace: Trace, slack: float) -> None:
    problem = trace.problem
    there: dict[tuple[int, int], float] = {}

    def note(version: int, node: int, at_s: float) -> None:
        there[version, node] = min(at_s, there.get((version, node), float("inf")))

    for version, producer in enumerate(problem.producer):
        if producer < 0:
            note(version, problem.home[problem.version_data[version]], 0.0)
    for run in trace.runs:
        if run.completed:
            for version in problem.outputs[run.task]:
                note(version, problem.node_of[run.unit], run.end_s)
    for move in trace.moves:
        note(move.version, move.target, move.end_s)
    absent = float("inf")
    for move in trace.moves:
        if there.get((move.version, move.source), absent) > move.start_s + slack:
            datum = problem.graph.data[problem.version_data[move.version]].name
            raise InvalidScheduleError(f"datum '{datum}' leaves node {move.source} before it is there")
    for run in trace.runs:
        for version in problem.inputs[run.task]:
            if there.get((version, problem.node_of[run.unit]), absent) > run.start_s + slack:
                datum = problem.graph.data[problem.version_data[version]].name
                raise InvalidScheduleError(
                    f"{_name(problem, run.task)} starts before datum '{datum}' is there"
                )


def _check_room(trace: Trace, slack: float) -> None:
    """No memory ever holds more than it can, and what a run reads has not given way."""
    problem = trace.problem
    ends, gone, begins = 0, 1, 2
    steps: list[tuple[float, int, int, int, Run | None]] = []
    """(when, which comes first, version or -1, node, run)."""
    for move in trace.moves:
        steps.append((move.start_s, begins, move.version, move.target, None))
        steps.append((move.end_s, ends, move.version, move.target, None))
    for one in trace.runs:
        steps.append((one.start_s, begins, -1, problem.node_of[one.unit], one))
        steps.append((one.end_s, ends, -1, problem.node_of[one.unit], one))
    steps += [(drop.at_s, gone, drop.version, drop.node, None) for drop in trace.drops]
    steps.sort(key=lambda step: step[:4])
    held: list[set[int]] = [set() for _ in range(problem.nodes)]
    reserved = [0.0] * problem.nodes
    for datum, home in enumerate(problem.home):
        held[home].add(datum)
    just_gone: set[tuple[float, int, int]] = set()
    """Tasks that take no time may have read, in the instant in which it went."""
    for at_s, what, version, node, run in steps:
        values = (version,) if run is None else problem.outputs[run.task]
        if what == gone:
            held[node].discard(version)
            just_gone.add((at_s, version, node))
            continue
        nbytes = sum(problem.nbytes[value] for value in values)
        reserved[node] += nbytes if what == begins else -nbytes
        if what == ends:
            held[node].update(values)
            continue
        inputs = () if run is None else problem.inputs[run.task]
        if any(v not in held[node] and (at_s, v, node) not in just_gone for v in inputs) and run is not None:
            raise InvalidScheduleError(f"{_name(problem, run.task)} reads what has given way")
        used = reserved[node] + sum(problem.nbytes[value] for value in held[node])
        if used > problem.capacity[node] * (1.0 + SLACK) + slack:
            raise InvalidScheduleError(
                f"memory '{problem.machine.nodes[node]}' holds {used:,.0f} bytes of {problem.capacity[node]:,.0f} "
                f"at {at_s:g} s"
            )


def _check_durations(trace: Trace, slack: float) -> None:
    problem = trace.problem
    for run in trace.runs:
        expected = problem.durations[run.task][problem.group_of[run.unit]]
        if run.completed and abs(run.end_s - run.start_s - expected) > slack:
            raise InvalidScheduleError(f"{_name(problem, run.task)} does not take as long as it should")
    for move in trace.moves:
        route = problem.routes[move.source * problem.nodes + move.target] or ()
        takes = sum(hop.takes_s(problem.nbytes[move.version]) for hop in route)
        if abs(move.end_s - move.start_s - takes) > slack:
            raise InvalidScheduleError("a move does not take as long as it should")
