"""Placement as a mixed-integer program for HiGHS: exact for small problems, and it proves bounds.

Two forms. `by_kind`, where no link binds and runs join end to start: integers count the machines of a kind that hold
a run, and flow passes between layer boundaries; machines that are alike are not told apart, so that nothing is
searched twice. `by_machine` follows the published model (Mei et al., Helix, ASPLOS 2025): start, number of layers and
a switch for each link; it knows links and partial inference, and can keep all machines but a few where they are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from physical.placement.bound import upper_bound
from physical.placement.flow import max_flow, tokens_per_s
from physical.placement.problem import IDLE, SINK, SOURCE, Placement, Problem, Run

MAX_CELLS = 60_000
"""Integers of a program that is still worth handing to HiGHS."""


@dataclass(frozen=True)
class Solved:
    """What HiGHS came to."""

    placement: Placement | None
    tokens_per_s: float
    bound: float
    """No placement is better (of those that the program allows); infinite where HiGHS has none."""
    proven: bool
    """The placement is optimal."""


class _Program:
    """Rows and columns, collected and handed over at once."""

    def __init__(self) -> None:
        self.cost: list[float] = []
        self.upper: list[float] = []
        self.integer: list[bool] = []
        self.rows: list[tuple[float, float, list[int], list[float]]] = []

    def column(self, upper: float, *, integer: bool = False, cost: float = 0.0) -> int:
        self.cost.append(cost)
        self.upper.append(upper)
        self.integer.append(integer)
        return len(self.cost) - 1

    def row(self, low: float, high: float, terms: Sequence[tuple[int, float]]) -> None:
        self.rows.append((low, high, [c for c, _ in terms], [v for _, v in terms]))

    def solve(
        self, budget_s: float, threads: int, start: Sequence[float] | None
    ) -> tuple[list[float] | None, float, bool]:
        """(values of the columns or None, bound, optimal), maximising the cost; the bound of what is infeasible is
        minus infinity. Raises RuntimeError when HiGHS fails."""
        import highspy  # noqa: PLC0415
        import numpy as np  # noqa: PLC0415

        lp: Any = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self.cost), len(self.rows)
        lp.sense_ = highspy.ObjSense.kMaximize
        lp.col_cost_ = np.array(self.cost)
        lp.col_lower_ = np.zeros(len(self.cost))
        lp.col_upper_ = np.array([highspy.kHighsInf if math.isinf(u) else u for u in self.upper])
        lp.row_lower_ = np.array([max(low, -highspy.kHighsInf) for low, *_ in self.rows])
        lp.row_upper_ = np.array([min(high, highspy.kHighsInf) for _, high, *_ in self.rows])
        lp.integrality_ = [
            highspy.HighsVarType.kInteger if whole else highspy.HighsVarType.kContinuous
            for whole in self.integer
        ]
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.cumsum([0, *(len(columns) for *_, columns, _ in self.rows)])
        lp.a_matrix_.index_ = np.array([c for *_, columns, _ in self.rows for c in columns])
        lp.a_matrix_.value_ = np.array([v for *_, values in self.rows for v in values], dtype=float)
        highspy.Highs.resetGlobalScheduler(True)  # else the number of threads of the first run would stand
        make: Any = highspy.Highs  # it has no types
        solver = make()
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("time_limit", max(0.05, budget_s))
        solver.setOptionValue("threads", threads)
        solver.passModel(lp)
        if start is not None:
            warm = highspy.HighsSolution()
            warm.col_value = list(start)
            solver.setSolution(warm)
        if solver.run() == highspy.HighsStatus.kError:
            raise RuntimeError(f"HiGHS failed on a placement program of {len(self.cost)} columns")
        info, status = solver.getInfo(), solver.getModelStatus()
        if status == highspy.HighsModelStatus.kInfeasible:
            return None, -math.inf, False
        feasible = info.primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible)
        bound = info.mip_dual_bound if math.isfinite(info.mip_dual_bound) else math.inf
        optimal = status == highspy.HighsModelStatus.kOptimal
        return (list(solver.getSolution().col_value) if feasible else None), bound, optimal


def by_kind(problem: Problem, budget_s: float, *, best: float = 0.0, threads: int = 1) -> Solved | None:
    """Solve by counts of machines of a kind; None where links bind, runs may overlap, or it is too large.

    `best` is what is known to be reached: the program looks above it only (and says so: no placement, with a
    bound of at most `best`, means that there is none).
    """
    kinds, layers = problem.kinds, problem.layers
    if not problem.loose_links or problem.partial:
        return None
    if sum(layers * len(rates) for rates, _ in kinds) > MAX_CELLS:
        return None
    limit = upper_bound(problem)
    program = _Program()
    balance: dict[int, list[tuple[int, float]]] = {point: [] for point in range(layers + 1)}
    cells: dict[int, tuple[int, Run]] = {}
    for kind, (rates, machines) in enumerate(kinds):
        used = []
        for count in range(1, len(rates) + 1):
            for start in range(layers - count + 1):
                whole = program.column(len(machines), integer=True)
                flow = program.column(math.inf, cost=1.0 if start == 0 else 0.0)
                # More than the bound flows nowhere: the tighter rate makes a tighter relaxation.
                real = problem.rate(machines[0], Run(start, count))
                program.row(-math.inf, 0.0, [(flow, 1.0), (whole, -min(real, limit))])
                balance[start].append((flow, -1.0))
                balance[start + count].append((flow, 1.0))
                used.append((whole, 1.0))
                cells[whole] = (kind, Run(start, count))
        program.row(-math.inf, len(machines), used)
    for point in range(1, layers):
        program.row(0.0, 0.0, balance[point])
    program.row(best, limit * (1.0 + 1e-9), [(c, -v) for c, v in balance[0]])
    values, bound, optimal = program.solve(budget_s, threads, None)
    bound = max(best, min(bound, limit))
    if values is None:
        return Solved(None, 0.0, bound, proven=False)
    runs = [Run(0, 1) if problem.must_hold else IDLE] * len(problem.machines)
    free = [list(machines) for _, machines in kinds]
    for whole, (kind, run) in cells.items():
        for _ in range(round(values[whole])):
            runs[free[kind].pop()] = run
    placement = tuple(runs)
    return Solved(placement, tokens_per_s(problem, placement), bound, optimal)


def by_machine(
    problem: Problem,
    budget_s: float,
    *,
    warm: Sequence[Run] | None = None,
    free: Collection[int] | None = None,
    threads: int = 1,
) -> Solved:
    """Solve machine by machine. With `free`, all others keep their runs of `warm`.

    Raises:
        ValueError: `free` without `warm`; or the last layers have rates of their own, which this form does not know.
    """
    if not problem.plain:
        raise ValueError(
            "the program by machine knows one rate for each number of layers: no last_tokens_per_s"
        )
    if free is not None and warm is None:
        raise ValueError("machines can only keep the runs that they have: give `warm` along with `free`")
    model = _MachineModel(problem, warm, free)
    start = model.values(warm) if warm is not None else None
    values, bound, optimal = model.program.solve(budget_s, threads, start)
    if values is None:
        return Solved(None, 0.0, bound, proven=False)
    placement = model.placement(values)
    return Solved(placement, tokens_per_s(problem, placement), bound, optimal and free is None)


class _MachineModel:
    """Columns and rows of `by_machine`."""

    def __init__(self, problem: Problem, warm: Sequence[Run] | None, free: Collection[int] | None) -> None:
        self.problem = problem
        self.program = _Program()
        count = len(problem.machines)
        self.limit = upper_bound(problem)
        program, layers = self.program, problem.layers
        self.start = [program.column(layers - 1, integer=True) for _ in range(count)]
        self.hold = [
            [program.column(1, integer=True) for _ in range(problem.most(i) + 1)] for i in range(count)
        ]
        """By layers held; 0: idle."""
        self.flow: dict[tuple[int, int], int] = {}
        self.switch: dict[tuple[int, int], int] = {}
        for i in range(count):
            program.row(1.0, 1.0, [(column, 1.0) for column in self.hold[i]])
            program.row(-math.inf, layers, self._end(i))
            if problem.must_hold:
                program.row(0.0, 0.0, [(self.hold[i][0], 1.0)])
        ends = [(SOURCE, i) for i in range(count)] + [(i, SINK) for i in range(count)]
        ends += [(i, j) for i in range(count) for j in range(count) if i != j]
        for a, b in ends:
            rate = min(problem.link(a, b), self.limit)
            if rate > 0.0:
                self._link(a, b, rate)
        for i in range(count):
            self._machine(i)
        if free is not None and warm is not None:
            for i in set(range(count)) - set(free):
                program.row(1.0, 1.0, [(self.hold[i][warm[i].count], 1.0)])
                program.row(warm[i].start, warm[i].start, [(self.start[i], 1.0)])

    def _end(self, i: int, factor: float = 1.0) -> list[tuple[int, float]]:
        held = [(column, factor * k) for k, column in enumerate(self.hold[i]) if k]
        return [(self.start[i], factor), *held]

    def _link(self, a: int, b: int, rate: float) -> None:
        """Flow only where the switch is on, and the switch only where the runs join."""
        program, layers = self.program, self.problem.layers
        flow = self.flow[a, b] = program.column(math.inf, cost=1.0 if a == SOURCE else 0.0)
        switch = self.switch[a, b] = program.column(1, integer=True)
        program.row(-math.inf, 0.0, [(flow, 1.0), (switch, -rate)])
        if a == SOURCE:
            program.row(-math.inf, layers, [(self.start[b], 1.0), (switch, float(layers))])
            return
        if b == SINK:
            program.row(0.0, math.inf, [*self._end(a), (switch, -float(layers))])
            return
        # start of b <= end of a, and (partial) end of a < end of b or (exact) end of a <= start of b.
        program.row(-layers, math.inf, [*self._end(a), (self.start[b], -1.0), (switch, -float(layers))])
        if self.problem.partial:
            terms = [*self._end(b), *self._end(a, -1.0), (switch, -float(layers + 1))]
            program.row(1.0 - layers - 1.0, math.inf, terms)
        else:
            terms = [(self.start[b], 1.0), *self._end(a, -1.0), (switch, -float(layers))]
            program.row(-layers, math.inf, terms)

    def _machine(self, i: int) -> None:
        """What comes in goes out, and no more than the machine's rate."""
        machine = self.problem.machines[i]
        arriving = [(column, 1.0) for (_, b), column in self.flow.items() if b == i]
        leaving = [(column, -1.0) for (a, _), column in self.flow.items() if a == i]
        self.program.row(0.0, 0.0, arriving + leaving)
        rates = [(column, -min(machine.rate(k), self.limit)) for k, column in enumerate(self.hold[i]) if k]
        self.program.row(-math.inf, 0.0, arriving + rates)

    def values(self, placement: Sequence[Run]) -> list[float]:
        """The columns of a placement (the flow left for HiGHS to complete is the real one)."""
        values = [0.0] * len(self.program.cost)
        for i, run in enumerate(placement):
            values[self.start[i]] = min(run.start, self.problem.layers - 1)
            values[self.hold[i][run.count]] = 1.0
        for ends, amount in max_flow(self.problem, placement).links.items():
            if ends in self.flow:
                values[self.flow[ends]] = amount
                values[self.switch[ends]] = 1.0
        return values

    def placement(self, values: Sequence[float]) -> Placement:
        """The runs that the columns say."""
        runs = []
        for i, columns in enumerate(self.hold):
            count = max(range(len(columns)), key=lambda k: values[columns[k]])
            runs.append(Run(round(values[self.start[i]]), count) if count else IDLE)
        return tuple(runs)
