"""Placement of LLaMA layers on Helix's heterogeneous clusters: our search against the published solutions.

DATA_DIR holds Helix's files (github.com/Thesys-lab/Helix-ASPLOS25; Mei et al., ASPLOS 2025): models (.lp), stored
solutions (.sol), cluster files and tables, gzipped or not; it is searched for ilp_model.lp, so that other models in
the same form run, too. For each model: the stored solution's integers are fixed in the published model and in our
evaluator, which must agree; then our search runs from nothing until it has proven its placement best or its time is
over, and its placement's integers are fixed in the published model, whose feasibility and objective count. The
objective is the published one, tokens/s of maximum flow, which does not know latency: the machines that a token
passes are given beside it. HiGHS on the published model as it stands, and known systems' layouts, are rows as well.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkInputError, Options, Target, parse_options, progress, publish, run_main
from benchmarks.placing.clusters import Cluster, is_cluster, read_cluster, read_layout, read_tables
from benchmarks.placing.published import Published, machines_passed
from physical.placement.flow import tokens_per_s
from physical.placement.problem import IDLE, SINK, SOURCE, PlacementError, Problem, Run, check
from physical.placement.search import STARTS, Found, search, walk

LIMIT_S = 300.0
"""In which the published figure is to be reached."""
AGREE = 1e-6
"""Relative difference at which two evaluations of the same placement are the same."""
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = parse_options("helix", __doc__, argv, extend=_arguments)
    data = options.require_data_dir()
    root = data / "helix" if (data / "helix").is_dir() else data
    models = sorted([*root.glob("**/*.lp"), *root.glob("**/*.lp.gz")])
    if not models:
        raise BenchmarkInputError(f"helix: no model (.lp or .lp.gz) below {root}")
    clusters = [read_cluster(p) for p in _files(root, ".ini") if is_cluster(p)]
    rows: list[Row] = []
    curves: list[Row] = []
    targets: list[Target] = []
    for path in models:
        name = _name(root, path)
        with progress(options, name):
            found, curve, met = measure(options, root, path, name, clusters)
        rows += found
        curves += curve
        targets += met
    for table in read_tables(root):
        note = f"prompts {table.prompt_tokens_per_s:,.0f} tokens/s"
        rows.append(
            {"case": f"table {table.model}", "method": f"{table.kind}, one layer, decode",
             "tokens_per_s": table.decode_tokens_per_s, "note": note}
        )  # fmt: skip
    return publish(options, rows + curves, targets)


@dataclass(frozen=True)
class Case:
    """One published model."""

    name: str
    published: Published
    problem: Problem
    cluster: Cluster | None
    """The cluster file that it was made from, where there is one."""
    goal: float
    """Tokens/s of the stored solution; NaN: there is none."""

    def row(self, method: str, value: float, placement: Sequence[Run]) -> Row:
        """What a method comes to."""
        return {
            "case": self.name,
            "method": method,
            "tokens_per_s": value,
            "over_published": value / self.goal,
            "machines_passed": machines_passed(self.problem, placement),
            "seconds": None,
            "note": "",
        }


def measure(
    options: Options, root: Path, path: Path, name: str, clusters: Sequence[Cluster]
) -> tuple[list[Row], list[Row], list[Target]]:
    """(rows, curve, targets) of one published model."""
    published = Published(path)
    problem = published.problem()
    cluster = _cluster_of(problem, clusters)
    if cluster is not None:
        problem = published.problem(cluster.kinds)
    case = Case(name, published, problem, cluster, math.nan)
    rows: list[Row] = []
    targets: list[Target] = []
    solution = next(iter(_files(path.parent, ".sol")), None)
    if solution is not None:
        verdict, goal, runs = published.stored(solution)
        case = replace(case, goal=goal)
        own = tokens_per_s(problem, runs)
        note = f"its own model says {verdict.objective:,.4f}"
        rows.append(case.row("published solution, our evaluator", own, runs) | {"note": note})
        apart = max(abs(own - goal), abs(verdict.objective - goal)) / goal
        targets.append(Target(f"reproduced/{name}", apart, AGREE, "lower", "relative"))
    budget_s = options.extra.budget_s or (15.0 if options.quick else 240.0)
    found = search(problem, budget_s=budget_s, seed=options.seed, processes=2)
    verdict = published.judge(problem, found.placement)
    rows.append(_found_row(case, found, verdict.objective))
    if solution is not None:
        reached_s = found.reached_s(case.goal) if verdict.feasible else None
        name_of = f"tokens_per_s/{name}", f"reached_s/{name}"
        targets.append(Target(name_of[0], _down(verdict.objective), _down(case.goal), "higher", "tokens/s"))
        targets.append(
            Target(name_of[1], math.nan if reached_s is None else reached_s, LIMIT_S, "lower", "s")
        )
    rows += list(_peers(options, root, case))
    curve = [
        {"case": f"{name}, best so far", "method": step.method, "tokens_per_s": step.tokens_per_s,
         "over_published": step.tokens_per_s / case.goal, "seconds": step.at_s}
        for step in found.curve
    ]  # fmt: skip
    return rows, curve, targets


def _peers(options: Options, root: Path, case: Case) -> Iterator[Row]:
    """What others do with the same problem."""
    problem = case.problem
    for method, start in STARTS.items():
        placement = start(problem)
        yield case.row(f"{method}, our version", tokens_per_s(problem, placement), placement)
    for layout in _files(root, ".ini"):
        if case.cluster is None or not _beside(layout, case.published.path):
            continue
        runs = _stored_layout(layout, problem)
        if runs is not None:
            yield case.row(f"stored layout {layout.parent.name}", tokens_per_s(problem, runs), runs)
    budget_s = options.extra.peer_s or (3.0 if options.quick else 20.0)
    began = time.perf_counter()
    alone = walk(problem, STARTS["petals"](problem), options.seed, budget_s, math.inf)
    row = case.row("annealing alone", tokens_per_s(problem, alone), alone)
    yield row | {"seconds": time.perf_counter() - began}
    attempt = case.published.attempt(budget_s, 2)
    yield {
        "case": case.name,
        "method": "HiGHS on the published model, 2 threads",
        "tokens_per_s": attempt.objective,
        "over_published": attempt.objective / case.goal,
        "seconds": attempt.took_s,
        "note": f"bound {attempt.bound:,.1f}",
    }


def _found_row(case: Case, found: Found, judged: float) -> Row:
    reached_s = found.reached_s(case.goal)
    notes = [
        "proven best" if found.optimal else f"bound {found.bound:,.1f}",
        f"stopped after {found.took_s:.2f} s",
        "published never reached" if reached_s is None else f"published reached after {reached_s:.4f} s",
    ]
    best_s = found.curve[-1].at_s if found.curve else None
    row = case.row(f"ours ({found.method})", judged, found.placement)
    return row | {"seconds": best_s, "note": "; ".join(notes)}


def _cluster_of(problem: Problem, clusters: Sequence[Cluster]) -> Cluster | None:
    """The cluster file that this model was made from: as many nodes, equal kinds exactly where rates are equal, and
    bandwidths in one proportion to the model's."""
    for cluster in clusters:
        if len(cluster.kinds) != len(problem.machines):
            continue
        pairs = {(kind, m.tokens_per_s) for kind, m in zip(cluster.kinds, problem.machines, strict=True)}
        if len(pairs) != len({kind for kind, _ in pairs}) or len(pairs) != len({rates for _, rates in pairs}):
            continue
        shares = {
            round(problem.links[ends] / bandwidth, 9)
            for (a, b), bandwidth in cluster.links.items()
            if (ends := (_number(a), _number(b))) in problem.links and SOURCE not in ends and SINK not in ends
        }
        if len(shares) <= 1:
            return cluster
    return None


def _stored_layout(path: Path, problem: Problem) -> tuple[Run, ...] | None:
    """A layout of another system for these very machines, or None."""
    if not path.name.startswith(("petals", "swarm")):
        return None
    held = read_layout(path)
    if max(held, default=0) >= len(problem.machines):
        return None
    if {layer for layers in held.values() for layer in layers} != set(range(problem.layers)):
        return None
    runs = tuple(Run(held[i][0], len(held[i])) if held.get(i) else IDLE for i in range(len(problem.machines)))
    try:
        check(replace(problem, must_hold=False), runs)  # other systems may leave a machine out
    except PlacementError:
        return None
    return runs


def _beside(layout: Path, model: Path) -> bool:
    """In the same family of layouts, e.g. layout_llama70b."""
    return layout.parent.parent in model.parents


def _files(root: Path, ending: str) -> list[Path]:
    return sorted([*root.glob(f"**/*{ending}"), *root.glob(f"**/*{ending}.gz")])


def _name(root: Path, path: Path) -> str:
    """`layout_llama70b/ilp/ilp_model.lp.gz` -> llama70b; the part of the cluster is kept."""
    parts = path.relative_to(root).parent.parts
    words = [part.removeprefix("layout_") for part in parts if part not in {"single_cluster", "ilp"}]
    return "/".join(words) or path.name.partition(".")[0]


def _number(end: str) -> int:
    return {"source": SOURCE, "sink": SINK}[end] if not end.isdigit() else int(end)


def _down(value: float) -> float:
    """To a millionth of a token/s: solvers differ in the last digits."""
    return math.floor(value * 1e6) / 1e6 if math.isfinite(value) else value


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--budget-s", type=float, help="seconds of our search a model (default: 240; quick: 15)"
    )
    parser.add_argument("--peer-s", type=float, help="seconds of each peer a model (default: 20; quick: 3)")


if __name__ == "__main__":
    sys.exit(run_main(main))
