"""A published model (.lp) and its stored solution (.sol): read as a placement problem, and asked to judge placements.

HiGHS reads the model; nothing of its rows is assumed beyond the names of its columns (start_i, hold_i_k, flow_a_b,
switch_a_b) when a placement is judged: start, hold and switch are fixed to the placement's, and what HiGHS then says
of feasibility and objective is the model's own word.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkInputError
from benchmarks.placing.clusters import read_text
from physical.placement.flow import max_flow
from physical.placement.problem import SINK, SOURCE, Machine, Problem, Run, joins

Column = Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """What the published model says of fixed integers."""

    feasible: bool
    objective: float
    """Tokens/s; NaN when infeasible."""


@dataclass(frozen=True)
class Attempt:
    """What HiGHS made of the published model itself in some time."""

    objective: float
    bound: float
    took_s: float


class Published:
    """One .lp file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text = read_text(path)
        self._solver = self._load()
        lp = self._solver.getLp()
        self._columns = {name: i for i, name in enumerate(lp.col_names_)}
        self._integer = [i for i, kind in enumerate(lp.integrality_) if int(kind) == 1]

    def problem(self, kinds: Sequence[str] = ()) -> Problem:
        """Rates, links and layers as the model's rows say. `kinds` names the machines' kinds."""
        rows = self._rows()
        count = sum(1 for name in self._columns if name.startswith("start_"))
        layers = round(self._upper("end_constraint_0"))
        machines = []
        for i in range(count):
            row = self._row(rows, f"node_throughput_constraint_{i}")
            rates = {
                int(name.rpartition("_")[2]): -value
                for name, value in row.items()
                if name.startswith(f"hold_{i}_")
            }
            kind = kinds[i] if kinds else f"{len(rates)} layers"
            table = tuple(rates.get(k, 0.0) for k in range(1, max(rates, default=0) + 1))
            machines.append(Machine(f"node {i}", kind, table))
        links = {}
        for name in self._columns:
            if name.startswith("flow_"):
                ends = name.split("_")[1:]
                row = self._row(rows, "edge_flow_constr_" + "_".join(ends))
                links[_end(ends[0]), _end(ends[1])] = -row.get("switch_" + "_".join(ends), -math.inf)
        must_hold = all(f"hold_{i}_0" not in self._columns for i in range(count))
        return Problem(layers, tuple(machines), links, default_link=0.0, must_hold=must_hold)

    def judge(self, problem: Problem, placement: Sequence[Run]) -> Verdict:
        """The model's word on a placement, its switches on wherever runs join."""
        fixed: dict[str, float] = {}
        for i, run in enumerate(placement):
            fixed[f"start_{i}"] = run.start
            for k in range(1, problem.most(i) + 1):
                fixed[f"hold_{i}_{k}"] = float(run.count == k)
        for name in self._columns:
            if name.startswith("switch_"):
                a, b = (_end(end) for end in name.split("_")[1:])
                fixed[name] = float(_on(problem, placement, a, b))
        return self.fixed(fixed)

    def stored(self, path: Path) -> tuple[Verdict, float, tuple[Run, ...]]:
        """(the model's word on the integers of a .sol file, the objective that the file states, its runs)."""
        text = read_text(path)
        stated = re.search(r"Objective value = (\S+)", text)
        values = {}
        for line in text.splitlines():
            if line.strip() and not line.startswith("#"):
                name, value = line.split()
                values[name] = float(value)
        names = list(self._columns)
        missing = [names[i] for i in self._integer if names[i] not in values]
        if missing or stated is None:
            raise BenchmarkInputError(
                f"helix: {path} is no solution of {self.path}: no {missing[:3] or 'objective'}"
            )
        verdict = self.fixed({names[i]: round(values[names[i]]) for i in self._integer})
        count = sum(1 for name in names if name.startswith("start_"))
        held = {
            int(name.split("_")[1]): int(name.split("_")[2])
            for name, value in values.items()
            if name.startswith("hold_") and round(value) == 1
        }
        runs = tuple(Run(round(values[f"start_{i}"]), held[i]) for i in range(count))
        return verdict, float(stated[1]), runs

    def fixed(self, values: Column) -> Verdict:
        """Feasibility and objective with columns fixed."""
        import highspy  # noqa: PLC0415

        solver = self._load()
        for name, value in values.items():
            solver.changeColBounds(self._columns[name], float(value), float(value))
        if solver.run() == highspy.HighsStatus.kError:
            raise BenchmarkInputError(f"helix: HiGHS fails on {self.path} with its integers fixed")
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return Verdict(feasible=False, objective=math.nan)
        return Verdict(feasible=True, objective=float(solver.getInfo().objective_function_value))

    def attempt(self, budget_s: float, threads: int) -> Attempt:
        """HiGHS on the published model as it is: what an open solver does with it."""
        import highspy  # noqa: PLC0415

        solver = self._load()
        solver.setOptionValue("time_limit", budget_s)
        solver.setOptionValue("threads", threads)
        if solver.run() == highspy.HighsStatus.kError:
            raise BenchmarkInputError(f"helix: HiGHS fails on {self.path}")
        info = solver.getInfo()
        found = info.primal_solution_status == 2
        objective = float(info.objective_function_value) if found else math.nan
        return Attempt(objective, float(info.mip_dual_bound), float(solver.getRunTime()))

    def _load(self) -> Any:
        import highspy  # noqa: PLC0415

        highspy.Highs.resetGlobalScheduler(True)  # else the number of threads of the first run would stand
        make: Any = highspy.Highs  # it has no types
        solver = make()
        solver.setOptionValue("output_flag", False)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "model.lp"  # the reader goes by the name's ending
            path.write_text(self._text, encoding="utf-8")
            status = solver.readModel(str(path))
        if status == highspy.HighsStatus.kError or not solver.getNumCol():
            raise BenchmarkInputError(f"helix: HiGHS cannot read the model {self.path}")
        return solver

    def _rows(self) -> dict[str, dict[str, float]]:
        lp = self._solver.getLp()
        names, columns = list(lp.row_names_), list(lp.col_names_)
        rows: dict[str, dict[str, float]] = {name: {} for name in names}
        matrix = lp.a_matrix_
        by_column = str(matrix.format_).endswith("kColwise")
        starts, indices, values = list(matrix.start_), list(matrix.index_), list(matrix.value_)
        for major in range(len(starts) - 1):
            for at in range(starts[major], starts[major + 1]):
                row, column = (indices[at], major) if by_column else (major, indices[at])
                rows[names[row]][columns[column]] = float(values[at])
        return rows

    def _row(self, rows: Mapping[str, dict[str, float]], name: str) -> dict[str, float]:
        if name not in rows:
            raise BenchmarkInputError(f"helix: {self.path} has no row {name}: not a model of this form")
        return rows[name]

    def _upper(self, row: str) -> float:
        lp = self._solver.getLp()
        names = list(lp.row_names_)
        if row not in names:
            raise BenchmarkInputError(f"helix: {self.path} has no row {row}: not a model of this form")
        return float(lp.row_upper_[names.index(row)])


def machines_passed(problem: Problem, placement: Sequence[Run]) -> float:
    """Machines that a token passes on its way, in the mean over the flow."""
    flow = max_flow(problem, placement)
    return sum(flow.machines) / flow.tokens_per_s if flow.tokens_per_s else 0.0


def _end(name: str) -> int:
    return {"source": SOURCE, "sink": SINK}.get(name, -3) if not name.isdigit() else int(name)


def _on(problem: Problem, placement: Sequence[Run], a: int, b: int) -> bool:
    if a == SOURCE:
        return placement[b].start == 0
    if b == SINK:
        return placement[a].end == problem.layers
    return joins(problem, placement[a], placement[b])
