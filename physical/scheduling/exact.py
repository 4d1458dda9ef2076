"""The whole problem as a constraint program for CP-SAT: small graphs to proven optimality.

Time is counted in quanta, durations rounded up; a plan found keeps its order and gets its real times by replay.
With contended links each hop of each version is an optional interval on its links; without contention a
transfer is a distance between two tasks.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from physical.scheduling.plan import Move, Plan
from physical.scheduling.problem import FlatHop, Problem
from physical.scheduling.replay import tightened

Found = tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...], tuple[Move, ...]]
"""Units, starts, ends and moves of a plan."""
QUANTA = 20_000
"""Quanta in the hint's makespan, where no quantum is given."""


@dataclass(frozen=True, slots=True)
class Exact:
    """What CP-SAT found."""

    plan: Plan | None
    """None when it found nothing in time."""
    proven: bool
    """Is the plan optimal (up to the rounding of durations)?"""
    bound_s: float
    """No schedule of the rounded problem is shorter."""


def solve(
    problem: Problem,
    *,
    hint: Plan | None = None,
    limit_s: float = 10.0,
    quantum_s: float | None = None,
    seed: int = 0,
) -> Exact:
    """Search for the optimum on one core for at most so long; waits for it.

    `quantum_s`: what all durations are rounded up to; give the greatest common divisor of all durations and
    transfer times for an optimum without rounding. Needs OR-tools.
    """
    return submit(problem, hint=hint, limit_s=limit_s, quantum_s=quantum_s, seed=seed)()


def submit(
    problem: Problem,
    *,
    hint: Plan | None = None,
    limit_s: float = 10.0,
    quantum_s: float | None = None,
    seed: int = 0,
) -> Callable[[], Exact]:
    """`solve` in the background: what is returned waits for the outcome.

    It runs in a process of its own, one search after another: the caller goes on, and OR-tools and highspy,
    whose shared libraries exclude each other, never meet.
    """
    if not problem.tasks:
        nothing = Exact(Plan(problem, "cp-sat", (), (), (), ()), proven=True, bound_s=0.0)
        return lambda: nothing
    future = _worker().submit(_found, problem, hint, limit_s, quantum_s, seed)

    def outcome() -> Exact:
        found, proven, bound_s = future.result()
        # The problem of the caller, not its copy from the other process.
        plan = None if found is None else Plan(problem, "cp-sat", *found)
        return Exact(plan, proven=proven, bound_s=bound_s)

    return outcome


@functools.cache
def _worker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _found(
    problem: Problem, hint: Plan | None, limit_s: float, quantum_s: float | None, seed: int
) -> tuple[Found | None, bool, float]:
    """In the other process."""
    exact = _Model(problem, hint, quantum_s).solve(limit_s, seed)
    plan = exact.plan
    found = None if plan is None else (plan.unit, plan.start_s, plan.end_s, plan.moves)
    return found, exact.proven, exact.bound_s


class _Model:
    """Variables and constraints."""

    def __init__(self, problem: Problem, hint: Plan | None, quantum_s: float | None) -> None:
        from ortools.sat.python import cp_model  # noqa: PLC0415  # slow to import

        self.cp: Any = cp_model
        self.problem, self.hint = problem, hint
        serial_s = sum(max(d for d in row if d < math.inf) for row in problem.durations)
        serial_s += sum(self._worst_s(v) for reads in problem.inputs for v in reads)
        span_s = hint.makespan_s if hint is not None else serial_s
        self.quantum_s = quantum_s or max(span_s / QUANTA, 1e-12)
        # Rounding up lengthens every step of a hint by at most one quantum.
        slack = 4 * problem.tasks + 4 * sum(map(len, problem.inputs)) if quantum_s is None else 0
        self.horizon = math.ceil(span_s / self.quantum_s) + slack + 1
        self.model: Any = cp_model.CpModel()
        self.start: list[Any] = []
        self.end: list[Any] = []
        self.on: list[dict[int, Any]] = []
        self.hops: dict[tuple[int, FlatHop], tuple[Any, Any, Any]] = {}
        self._tasks()
        self._at = [self._nodes(task) for task in range(problem.tasks)]
        every = {hop for route in problem.routes if route for hop in route}
        self.every_hop = sorted(every, key=lambda hop: (hop.source, hop.target))
        self.contended = any(hop.links for hop in self.every_hop)
        if self.contended:
            self._moves()
        else:
            self._distances()
        self.makespan = self.model.new_int_var(0, self.horizon, "makespan")
        for end in self.end:
            self.model.add(self.makespan >= end)
        self.model.minimize(self.makespan)

    def _worst_s(self, version: int) -> float:
        routes = [route for route in self.problem.routes if route]
        return max(
            (sum(h.takes_s(self.problem.nbytes[version]) for h in route) for route in routes), default=0.0
        )

    def quanta(self, seconds: float) -> int:
        """Rounded up, but for what is a whole number up to rounding error."""
        return math.ceil(seconds / self.quantum_s - 1e-6)

    def _tasks(self) -> None:
        model, problem = self.model, self.problem
        on_group: list[list[Any]] = [[] for _ in problem.groups]
        for task, row in enumerate(problem.durations):
            start = model.new_int_var(0, self.horizon, f"s{task}")
            end = model.new_int_var(0, self.horizon, f"e{task}")
            chosen = {}
            for group, takes in enumerate(row):
                if takes == math.inf:
                    continue
                chosen[group] = model.new_bool_var(f"x{task},{group}")
                interval = model.new_optional_interval_var(
                    start, self.quanta(takes), end, chosen[group], f"i{task},{group}"
                )
                on_group[group].append(interval)
            model.add_exactly_one(chosen.values())
            self.start.append(start)
            self.end.append(end)
            self.on.append(chosen)
        for alike, intervals in zip(problem.groups, on_group, strict=True):
            self._capacity(intervals, len(alike.units))
        for task, before in enumerate(problem.predecessors):
            for predecessor in before:
                model.add(self.start[task] >= self.end[predecessor])

    def _capacity(self, intervals: list[Any], lanes: int) -> None:
        if lanes == 1:
            self.model.add_no_overlap(intervals)
        elif len(intervals) > lanes:
            self.model.add_cumulative(intervals, [1] * len(intervals), lanes)

    def _nodes(self, task: int) -> dict[int, Any]:
        """Per memory node: is the task there?"""
        found: dict[int, list[Any]] = defaultdict(list)
        for group, literal in self.on[task].items():
            found[self.problem.groups[group].node].append(literal)
        result = {}
        for node, literals in found.items():
            if len(literals) == 1:
                result[node] = literals[0]
                continue
            there = self.model.new_bool_var(f"n{task},{node}")
            self.model.add(sum(literals) == there)
            result[node] = there
        return result

    def _distances(self) -> None:
        model, problem = self.model, self.problem
        for task, reads in enumerate(problem.inputs):
            for version in reads:
                producer = problem.producer[version]
                home = problem.home[problem.version_data[version]]
                sources = {home: None} if producer < 0 else self._at[producer]
                for source, there in sources.items():
                    for node, here in self._at[task].items():
                        takes = problem.transfer_s(source, node, problem.nbytes[version])
                        if node == source or takes <= 0.0:
                            continue
                        began = 0 if producer < 0 else self.end[producer]
                        enforced = [here] if there is None else [here, there]
                        model.add(self.start[task] >= began + self.quanta(takes)).only_enforce_if(enforced)

    def _moves(self) -> None:
        model, problem = self.model, self.problem
        readers: dict[int, list[int]] = defaultdict(list)
        for task, reads in enumerate(problem.inputs):
            for version in reads:
                readers[version].append(task)
        on_link: dict[int, list[Any]] = defaultdict(list)
        for version, tasks in sorted(readers.items()):
            there, since = self._copies(version, on_link)
            for task in tasks:
                for node, here in self._at[task].items():
                    model.add_implication(here, there[node])
                    model.add(self.start[task] >= since[node]).only_enforce_if(here)
        for link, intervals in sorted(on_link.items()):
            self._capacity(intervals, problem.streams[link] or 1)

    def _copies(self, version: int, on_link: dict[int, list[Any]]) -> tuple[dict[int, Any], dict[int, Any]]:
        """Per node: is a copy of this version there, and since when; each copy has one source."""
        model, problem = self.model, self.problem
        there = {n: model.new_bool_var(f"c{version},{n}") for n in range(problem.nodes)}
        since = {n: model.new_int_var(0, self.horizon, f"a{version},{n}") for n in range(problem.nodes)}
        support: dict[int, list[Any]] = {node: [] for node in there}
        producer = problem.producer[version]
        if producer < 0:
            support[problem.home[problem.version_data[version]]].append(True)
        else:
            for node, literal in self._at[producer].items():
                support[node].append(literal)
                model.add(since[node] >= self.end[producer]).only_enforce_if(literal)
        for hop in self.every_hop:
            takes = self.quanta(hop.takes_s(problem.nbytes[version]))
            used = model.new_bool_var("")
            start = model.new_int_var(0, self.horizon, "")
            end = model.new_int_var(0, self.horizon, "")
            interval = model.new_optional_interval_var(start, takes, end, used, "")
            for link in hop.links:
                on_link[link].append(interval)
            model.add_implication(used, there[hop.source])
            model.add(start >= since[hop.source]).only_enforce_if(used)
            # At least one quantum, so that two copies cannot be each other's source.
            model.add(since[hop.target] >= start + max(takes, 1)).only_enforce_if(used)
            support[hop.target].append(used)
            self.hops[version, hop] = (used, start, end)
        for node, literals in support.items():
            if literals and literals[0] is True:
                continue
            model.add_exactly_one(*literals, there[node].negated())
        return there, since

    def solve(self, limit_s: float, seed: int) -> Exact:
        """Run the solver."""
        if self.hint is not None:
            for task, unit in enumerate(self.hint.unit):
                self.model.add_hint(self.start[task], round(self.hint.start_s[task] / self.quantum_s))
                for group, literal in self.on[task].items():
                    self.model.add_hint(literal, group == self.problem.group_of[unit])
        solver = self.cp.CpSolver()
        solver.parameters.max_time_in_seconds = limit_s
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = seed
        status = solver.solve(self.model)
        bound_s = max(0.0, solver.best_objective_bound) * self.quantum_s
        if status not in {self.cp.OPTIMAL, self.cp.FEASIBLE}:
            return Exact(None, proven=False, bound_s=bound_s)
        plan = tightened(self._plan(solver))
        return Exact(plan, proven=status == self.cp.OPTIMAL, bound_s=bound_s)

    def _plan(self, solver: Any) -> Plan:
        problem = self.problem
        start = [solver.value(v) * self.quantum_s for v in self.start]
        end = [solver.value(v) * self.quantum_s for v in self.end]
        group = [next(g for g, x in chosen.items() if solver.boolean_value(x)) for chosen in self.on]
        unit = [0] * problem.tasks
        free: dict[int, float] = {}
        # With equal starts the one first that takes no time.
        place = {task: number for number, task in enumerate(problem.order)}
        for task in sorted(range(problem.tasks), key=lambda t: (start[t], end[t], place[t])):
            units = problem.groups[group[task]].units
            unit[task] = min(units, key=lambda u: (free.get(u, 0.0) > start[task] + 1e-9, -free.get(u, 0.0)))
            free[unit[task]] = end[task]
        moves = self._chosen_moves(solver) if self.contended else self._implied_moves(end, group)
        return Plan(problem, "cp-sat", tuple(unit), tuple(start), tuple(end), tuple(moves))

    def _chosen_moves(self, solver: Any) -> list[Move]:
        problem = self.problem
        chosen = []
        for (version, hop), (used, start, end) in self.hops.items():
            if solver.boolean_value(used):
                chosen.append((solver.value(start), solver.value(end), version, hop))
        chosen.sort(key=lambda entry: entry[:3])
        free: dict[tuple[int, int], int] = {}
        moves = []
        for start, end, version, hop in chosen:
            lanes = []
            for link in hop.links:
                streams = problem.streams[link] or 1
                lane = next(k for k in range(streams) if free.get((link, k), 0) <= start)
                free[link, lane] = end
                lanes.append((link, lane))
            quantum = self.quantum_s
            moves.append(
                Move(version, hop.source, hop.target, start * quantum, end * quantum, tuple(lanes), -1)
            )
        return moves

    def _implied_moves(self, end: list[float], group: list[int]) -> list[Move]:
        problem = self.problem
        moves: dict[tuple[int, int], Move] = {}
        for task, reads in enumerate(problem.inputs):
            node = problem.groups[group[task]].node
            for version in reads:
                producer = problem.producer[version]
                home = problem.home[problem.version_data[version]]
                source = home if producer < 0 else problem.groups[group[producer]].node
                at = 0.0 if producer < 0 else end[producer]
                for hop in problem.routes[source * problem.nodes + node] or ():
                    takes = hop.takes_s(problem.nbytes[version])
                    moves.setdefault(
                        (version, hop.target), Move(version, hop.source, hop.target, at, at + takes, (), task)
                    )
                    at += takes
        return list(moves.values())
