"""Random task graphs on unlike units: makespan over the optimum where CP-SAT proves it, and large graphs in seconds.

Small graphs (5 to 30 tasks, 3 units, without contention on links, the model of the scheduling literature): nine
families at two ratios of communication to computation; the optimum is CP-SAT's on one core (with the planner's
plan as its hint, in whole seconds, so that nothing is rounded). Gaps count over graphs whose optimum was proven;
the planner is our search alone, without CP-SAT, for half a second of CPU time a graph. `contended`: the same graphs on one CPU pair and two GPUs
behind shared links, proven in the same way.

Large graphs (10,000 tasks, 8 units): time to plan, and makespan over HEFT's and over the lower bound.

With `--memories`, the graphs on two CPUs and two GPUs whose memories hold a share of all data (at least the largest
task): makespans of plans that know it over those of plans that do not.

DATA_DIR is optional: WfCommons instances (JSON) there are planned too, on 8 units of three speeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkInputError, Options, Target, parse_options, progress, publish, run_main
from physical.scheduling.bounds import lower_bound_s
from physical.scheduling.carried import compared
from physical.scheduling.exact import solve
from physical.scheduling.families import FAMILIES, Setting, random_problem
from physical.scheduling.formats import FormatError, read_graph
from physical.scheduling.graph import GraphError
from physical.scheduling.heft import Heft, LookaheadHeft, Peft
from physical.scheduling.machine import Machine, Unit, fully_joined, host_with_accelerators
from physical.scheduling.online import Online
from physical.scheduling.planner import Planner
from physical.scheduling.port import Scheduler
from physical.scheduling.problem import Problem
from physical.scheduling.queues import Dmdas
from physical.scheduling.replay import replay
from physical.scheduling.trace import check

GAP_TARGET = 0.03
SECONDS_TARGET = 10.0
CCRS = (0.5, 2.0)
LARGE = 10_000


def contended(problem: Problem) -> Problem:
    """The same graph on two CPUs and two GPUs behind contended links: the third unit's durations are the CPUs'."""
    machine = host_with_accelerators("2+2", 2, 2, bytes_per_s=1.0, host_streams=1)
    rows = {task.kernel: row for task, row in zip(problem.graph.tasks, problem.durations, strict=True)}
    data = [type(datum)(datum.name, datum.nbytes) for datum in problem.graph.data]
    graph = type(problem.graph)(problem.graph.name, problem.graph.tasks, data)
    return Problem(
        graph, machine, lambda task, kind: 2 * rows[task.kernel][2] if kind == "cpu" else rows[task.kernel][0]
    )


def _small_problems(sizes: Sequence[int], seeds: Iterable[int]) -> Iterator[tuple[str, int, Problem, int]]:
    """(links, tasks asked for, graph, seed): every family, and the smallest ones on contended links too."""
    for links in ("free", "contended"):
        for count in sizes if links == "free" else sizes[:1]:
            for family in FAMILIES:
                for seed in seeds:
                    for ccr in CCRS if links == "free" else (0.5,):
                        problem = random_problem(family, count, Setting(ccr=ccr), seed)
                        yield links, count, problem if links == "free" else contended(problem), seed


def small(options: Options) -> tuple[list[dict[str, Any]], list[Target]]:
    """Gaps to proven optima."""
    sizes = (10, 20) if options.quick else (10, 20, 30)
    seeds = range(options.seed, options.seed + (1 if options.quick else 3))
    budget_s, limit_s = (0.25, 2.0) if options.quick else (0.5, 4.0)
    gaps: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    tried: dict[tuple[str, str], int] = defaultdict(int)
    schedulers: list[Scheduler] = [
        Planner(budget_s, clock=time.process_time),
        Heft(),
        Peft(),
        LookaheadHeft(),
        Online(Dmdas),
    ]
    for links, count, problem, seed in _small_problems(sizes, seeds):
        made = {s.name: check(replay(s.plan(problem, seed)), exact=True).as_plan() for s in schedulers}
        exact = solve(problem, hint=made["planner"], limit_s=limit_s, quantum_s=1.0, seed=seed)
        tried[links, str(count)] += 1
        if not exact.proven or exact.plan is None:
            continue
        best_s = exact.plan.makespan_s
        for name, plan in made.items():
            gaps[links, str(count), name].append(plan.makespan_s / best_s - 1.0)
    rows: list[dict[str, Any]] = []
    for (links, about, name), values in gaps.items():
        rows.append(
            {
                "graphs": f"about {about} tasks, {links}",
                "scheduler": name,
                "proven": f"{len(values)} of {tried[links, about]}",
                "mean_gap": statistics.fmean(values),
                "worst_gap": max(values),
                "optimal": sum(value < 1e-9 for value in values) / len(values),
            }
        )
    ours = [
        v
        for (links, _, name), values in gaps.items()
        if name == "planner" and links == "free"
        for v in values
    ]
    heft = [
        v for (links, _, name), values in gaps.items() if name == "heft" and links == "free" for v in values
    ]
    targets = [Target("mean_gap/planner", statistics.fmean(ours), GAP_TARGET, "lower")] if ours else []
    if heft:
        targets.append(
            Target(
                "mean_gap/planner_over_heft", statistics.fmean(ours) / statistics.fmean(heft), 1.0, "lower"
            )
        )
    return rows, targets


def one_large(name: str, problem: Problem, budget_s: float, seed: int) -> dict[str, Any]:
    """Planner against HEFT and the bound on one graph."""
    began = time.perf_counter()
    heft = Heft().plan(problem)
    heft_s = time.perf_counter() - began
    plan = Planner(budget_s, clock=time.process_time).plan(problem, seed)
    check(replay(plan), exact=True)
    bound_s = lower_bound_s(problem)
    return {
        "graphs": name,
        "scheduler": "planner",
        "tasks": problem.tasks,
        "planning_s": plan.planning_s,
        "heft_planning_s": heft_s,
        "over_heft": plan.makespan_s / heft.makespan_s,
        "over_bound": plan.makespan_s / bound_s,
        "heft_over_bound": heft.makespan_s / bound_s,
    }


def large(options: Options) -> tuple[list[dict[str, Any]], list[Target]]:
    """Ten thousand tasks."""
    count = LARGE // 10 if options.quick else LARGE
    families = ("layered", "montage") if options.quick else tuple(FAMILIES)
    rows = []
    for family in families:
        problem = random_problem(family, count, Setting(units=8), options.seed)
        rows.append(one_large(family, problem, 1.0 if options.quick else 5.0, options.seed))
    targets = [
        Target(
            "planning_s/large/slowest", max(row["planning_s"] for row in rows), SECONDS_TARGET, "lower", "s"
        ),
        Target("over_heft/large/worst", max(row["over_heft"] for row in rows), 1.0, "lower"),
    ]
    return rows, targets


def memories(options: Options) -> list[dict[str, Any]]:
    """Every family on contended links, with memories that hold a share of all data or the largest task."""
    count, budget_s = (40, 0.25) if options.quick else (100, 1.0)
    schedulers: list[Scheduler] = [Planner(budget_s, clock=time.process_time), Heft(), Peft()]
    rows = []
    for share in options.extra.memories:
        figures: dict[str, list[dict[str, float]]] = defaultdict(list)
        for family in FAMILIES:
            for seed in range(options.seed, options.seed + (1 if options.quick else 3)):
                free = contended(random_problem(family, count, Setting(ccr=0.5), seed))
                whole = sum(datum.nbytes for datum in free.graph.data)
                least = max(map(free.working_bytes, range(free.tasks))) / whole
                problem = free.with_memories(max(share, least))
                for scheduler in schedulers:
                    figures[scheduler.name].append(compared(problem, scheduler, seed))
        for name, found in figures.items():
            known = [one["known"] / one["ignored"] for one in found]
            rows.append(
                {
                    "graphs": f"about {count} tasks, memories {share:g}",
                    "scheduler": name,
                    "known_over_ignored": statistics.fmean(known),
                    "foreseen_over_ignored": statistics.fmean(
                        one["foreseen"] / one["ignored"] for one in found
                    ),
                    "worst_known_over_ignored": max(known),
                    "best_known_over_ignored": min(known),
                }
            )
    return rows


def instances(folder: Path, options: Options) -> list[dict[str, Any]]:
    """WfCommons instances in a folder, and graphs of our own format."""
    rows = []
    units = [
        Unit(f"{kind}{i}", kind, f"{kind}{i}")
        for kind, n in (("slow", 4), ("fast", 3), ("best", 1))
        for i in range(n)
    ]
    machine: Machine = fully_joined("eight", units, 1e9)
    speed = {"slow": 1.0, "fast": 2.0, "best": 4.0}
    for path in sorted(folder.glob("*.json")):
        try:
            workload = read_graph(path)
            problem = Problem(workload.graph, machine, workload.durations(speed))
        except (FormatError, GraphError) as error:
            raise BenchmarkInputError(f"dag: {error}") from error
        if problem.tasks:
            rows.append(one_large(path.stem, problem, 1.0, options.seed))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = parse_options("dag", __doc__, argv, extend=_extend)
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    if options.extra.only != "large":
        with progress(options, "small graphs against proven optima"):
            more, met = small(options)
        rows += more
        targets += met
    if options.extra.only != "small":
        with progress(options, "large graphs"):
            more, met = large(options)
        rows += more
        targets += met
    if options.extra.memories:
        with progress(options, "memories that are bounded"):
            rows += memories(options)
    if options.data_dir is not None:
        rows += instances(options.data_dir, options)
    return publish(options, rows, targets)


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=("small", "large"), help="one half of it")
    parser.add_argument(
        "--memories",
        type=float,
        nargs="+",
        metavar="SHARE",
        help="also with memories that hold this share of all data each",
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
