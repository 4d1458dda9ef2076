"""Does evolving policies while serving pay? Total execution time over nine dynamics, against everything else.

Each dynamic is replayed in batch mode in a hidden, perturbed world, once for each seed: every hand-written
baseline with constants tuned for that dynamic (`benchmarks.tune_baselines`), the best fixed constants found on the
past, the best of random programs on the past (both with as many simulated requests as evolution had), the evolving
system, which begins with the platform's default policy (also shown as it is, not evolving) and sees past windows
only, and the oracle: in each window the best of all policies, promoted ones included, switching for free.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkInputError, Options, Target, parse_options, publish, run_main
from benchmarks.tune_baselines import Constants, load_tuned
from loop.commands.inputs import find_data
from loop.compose.dynamics import DYNAMICS
from loop.compose.evolving import EvolutionConfig
from loop.compose.experiment import Experiment, ExperimentConfig
from loop.logs import configure_logging
from loop.runner.results import ExperimentResult, SystemKind, SystemResult, saving
from strategy.baselines import list_baselines
from strategy.evolve.synthesise.recipes import default_policy

SEEDS = 3
SIDE_BY_SIDE = 2
"""Experiments at a time, each on one core."""
QUICK_DYNAMICS = ("model-mix",)
QUICK_WINDOWS = 4
FIXED_LAYOUT = ("round_robin", "least_loaded", "kv_aware", "static_disaggregated")


@dataclass(frozen=True, slots=True)
class Job:
    """One dynamic with one seed; crosses into another process."""

    dynamic: str
    seed: int
    data_dir: Path | None
    quick: bool
    tuned: Mapping[str, Constants]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it."""
    options = parse_options("dynamics", __doc__, argv, extend=_extend)
    configure_logging()
    results = run_all(options)
    rows = [row for result in results for row in rows_of(result)]
    return publish(options, rows + medians(rows) + over_dynamics(rows), targets(rows))


def _extend(parser: argparse.ArgumentParser) -> None:
    names = [d.name for d in DYNAMICS]
    parser.add_argument("--only", nargs="*", choices=names, help="dynamics to run (default: all)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds of each (default: {SEEDS})")
    parser.add_argument("--untuned", action="store_true", help="baselines with the constants they come with")


def run_all(options: Options) -> list[ExperimentResult]:
    """All experiments, a few side by side, in the order of dynamics and seeds."""
    names = options.extra.only or (QUICK_DYNAMICS if options.quick else [d.name for d in DYNAMICS])
    seeds = 1 if options.quick else options.extra.seeds
    if seeds < 1:
        raise BenchmarkInputError(f"dynamics: --seeds is {seeds}, must be at least 1")
    tuned = {} if options.extra.untuned else load_tuned()
    data_dir = find_data(options.data_dir)
    jobs = [
        Job(name, options.seed + k, data_dir, options.quick, tuned.get(name, {}))
        for name in names
        for k in range(seeds)
    ]
    found: dict[int, ExperimentResult] = {}
    context = get_context("spawn")
    with ProcessPoolExecutor(SIDE_BY_SIDE, mp_context=context, initializer=configure_logging) as pool:
        futures = {pool.submit(run_one, job): index for index, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                job = jobs[futures[future]]
                found[futures[future]] = future.result()
                if not options.json:
                    told = f"  {len(found)}/{len(jobs)} {job.dynamic}, seed {job.seed}"
                    print(told, file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [found[index] for index in range(len(jobs))]


def run_one(job: Job) -> ExperimentResult:
    """One experiment on one core."""
    dynamic = next(d for d in DYNAMICS if d.name == job.dynamic)
    workload, cut = dynamic.build(job.data_dir, job.seed)
    config = ExperimentConfig(
        title=dynamic.name,
        cluster=dynamic.cluster,
        models=dynamic.models,
        window_s=dynamic.window_s,
        seed=job.seed,
        baselines=tuple(list_baselines()),
        users=(default_policy(),),
        begins_with=default_policy(),
        tuned=tuple((name, tuple(constants.items())) for name, constants in job.tuned.items()),
        evolution=EvolutionConfig.frugal(),
        workers=1,
    )
    with tempfile.TemporaryDirectory() as out:
        return Experiment(config, workload, cut[:QUICK_WINDOWS] if job.quick else cut, Path(out)).run()


def rows_of(result: ExperimentResult) -> list[dict[str, Any]]:
    """One row for each system of one experiment."""
    ours = _required(result, SystemKind.EVOLVING)
    oracle_s = _required(result, SystemKind.ORACLE).run.total_execution_time_s
    rows: list[dict[str, Any]] = []
    for s in result.systems:
        run = s.run
        row = {
            "dynamic": result.title,
            "seed": result.seed,
            "system": s.name,
            "kind": s.kind.value,
            "total_execution_time_s": run.total_execution_time_s,
            "serving_s": run.serving_s,
            "solve_s": run.solve_s,
            "reconfiguration_s": run.reconfiguration_s,
            "ttft_p99_s": run.stats.ttft_s.p99,
            "goodput": run.stats.goodput,
            "device_hours": run.resources.device_s / 3600,
            "not_served": run.stats.rejected + run.stats.lost,
            "evolving_saves": saving(ours, s),
            "over_oracle": run.total_execution_time_s / oracle_s - 1.0,
            "oracle_saves": 1.0 - oracle_s / run.total_execution_time_s,
        }
        if s is ours:
            row |= {
                "evolution_cpu_s": result.cost.cpu_s,
                "candidates": result.cost.candidates,
                "evaluations": result.cost.evaluations,
                "promoted": len(result.policies) - 1,
                "tokens": 0,
            }
        rows.append(row)
    return rows


def _required(result: ExperimentResult, kind: SystemKind) -> SystemResult:
    found = result.system(kind)
    if found is None:
        raise BenchmarkInputError(f"{result.title}: the experiment has no {kind} system")
    return found


def medians(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Medians over seeds, a row for each dynamic and system."""
    found: list[dict[str, Any]] = []
    for dynamic in dict.fromkeys(row["dynamic"] for row in rows):
        for system in dict.fromkeys(row["system"] for row in rows):
            mine = [r for r in rows if r["dynamic"] == dynamic and r["system"] == system]
            if mine:
                fixed = {"dynamic": dynamic, "seed": "median", "system": system, "kind": mine[0]["kind"]}
                numbers = [k for k in mine[0] if k not in fixed]
                found.append({**fixed, **{k: statistics.median(r[k] for r in mine) for k in numbers}})
    return found


def over_dynamics(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each system: what evolving saves against it, and what the oracle would, mean and best over dynamics
    (medians over seeds)."""
    middle = medians(rows)
    found = []
    for system in dict.fromkeys(row["system"] for row in rows):
        mine = [r for r in middle if r["system"] == system]
        savings = [r["evolving_saves"] for r in mine]
        found.append(
            {
                "dynamic": "all",
                "seed": "median",
                "system": system,
                "kind": mine[0]["kind"],
                "evolving_saves": statistics.fmean(savings),
                "evolving_saves_at_best": max(savings),
                "evolving_saves_at_worst": min(savings),
                "over_oracle": statistics.fmean(r["over_oracle"] for r in mine),
                "oracle_saves": statistics.fmean(r["oracle_saves"] for r in mine),
                "oracle_saves_at_best": max(r["oracle_saves"] for r in mine),
            }
        )
    return found


def targets(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """The issue's targets. Where it says "each", the least one counts."""
    summary = {r["system"]: r for r in over_dynamics(rows)}
    baselines = [r for r in summary.values() if r["kind"] == SystemKind.BASELINE]
    fixed = [r for r in baselines if r["system"] in FIXED_LAYOUT]
    middle = medians(rows)
    return [
        Target("saves_on_average_against_each_baseline", _least(baselines, "evolving_saves"), 0.34, "higher"),
        Target(
            "saves_at_best_against_each_baseline", _least(baselines, "evolving_saves_at_best"), 0.53, "higher"
        ),
        Target("saves_on_average_against_each_fixed_layout", _least(fixed, "evolving_saves"), 0.34, "higher"),
        Target(
            "saves_at_best_against_each_fixed_layout", _least(fixed, "evolving_saves_at_best"), 0.53, "higher"
        ),
        Target("saves_on_average_against_all_baselines", _mean(baselines, "evolving_saves"), 0.34, "higher"),
        Target("saves_against_tuned_static", summary["tuned_static"]["evolving_saves"], 0.10, "higher"),
        Target("saves_against_best_of_random", summary["best_of_random"]["evolving_saves"], 0.0, "higher"),
        Target(
            "saves_against_the_default_that_does_not_evolve",
            summary["default"]["evolving_saves"],
            0.0,
            "higher",
        ),
        Target("worse_than_the_best_fixed_policy_at_worst", _worst(middle, all_rivals=False), 0.03, "lower"),
        Target("worse_than_the_best_rival_at_worst", _worst(middle, all_rivals=True), 0.03, "lower"),
        Target("over_the_oracle_on_average", summary["evolving"]["over_oracle"], 0.15, "lower"),
        Target("not_served_by_evolving", _not_served(rows), 0.0, "lower", "requests"),
    ]


def _worst(middle: Sequence[Mapping[str, Any]], *, all_rivals: bool) -> float:
    """By how much the evolving system is at worst slower, in any dynamic, than the best fixed layout or tuned
    static; or than the best of all rivals."""
    worst = -1.0
    for dynamic in dict.fromkeys(r["dynamic"] for r in middle):
        mine = {r["system"]: r["total_execution_time_s"] for r in middle if r["dynamic"] == dynamic}
        names = [n for n in mine if n not in {"evolving", "oracle", "default"}]
        if not all_rivals:
            names = [n for n in names if n in FIXED_LAYOUT or n == "tuned_static"]
        worst = max(worst, mine["evolving"] / min(mine[n] for n in names) - 1.0)
    return worst


def _not_served(rows: Iterable[Mapping[str, Any]]) -> float:
    """Requests that the evolving system refused or lost, over all runs."""
    return float(sum(r["not_served"] for r in rows if r["kind"] == SystemKind.EVOLVING))


def _least(rows: Iterable[Mapping[str, Any]], key: str) -> float:
    return float(min(row[key] for row in rows))


def _mean(rows: Iterable[Mapping[str, Any]], key: str) -> float:
    return float(statistics.fmean(row[key] for row in rows))


if __name__ == "__main__":
    sys.exit(run_main(main))
