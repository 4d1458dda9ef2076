"""The main job over several seeds: total execution time of every system against the evolving one.

Same workload, cluster and settings as `make run`; each seed brings another hidden world, another scenario and
other random numbers of evolution. A positive saving means that the evolving system was faster.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Options, Target, parse_options, progress, publish, run_main
from execution.workload import windows
from loop.commands.inputs import find_data, open_trace
from loop.commands.replay import DEFAULT_SCENARIO
from loop.compose.evolving import DEFAULT_EVALUATIONS
from loop.compose.experiment import EVOLVING, Experiment, main_job
from loop.logs import configure_logging
from loop.runner.results import ExperimentResult, SystemKind, saving

SEEDS = 5
QUICK_SEEDS = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run it."""
    options = parse_options("loop_first", __doc__, argv)
    configure_logging()
    results = []
    seeds = QUICK_SEEDS if options.quick else SEEDS
    for seed in range(options.seed, options.seed + seeds):
        with progress(options, f"seed {seed}"):
            results.append(one_seed(options, seed))
    rows = [row for result in results for row in rows_of(result)]
    return publish(options, rows + summary(results), targets(results))


def one_seed(options: Options, seed: int) -> ExperimentResult:
    """One experiment; `--quick` takes the first third of the windows and a third of the evaluations."""
    evaluations = DEFAULT_EVALUATIONS // (3 if options.quick else 1)
    config = main_job(seed=seed, evaluations=evaluations)
    workload, events = open_trace(
        DEFAULT_SCENARIO, config.models, config.cluster, find_data(options.data_dir), seed
    )
    cut = tuple(windows(workload, config.window_s, events))
    if options.quick:
        cut = cut[: max(3, len(cut) // 3)]
    with tempfile.TemporaryDirectory() as out:
        return Experiment(config, workload, cut, Path(out)).run()


def rows_of(result: ExperimentResult) -> list[dict[str, Any]]:
    """One row for each system of one seed."""
    ours = result.system(SystemKind.EVOLVING)
    rows: list[dict[str, Any]] = []
    for s in result.systems:
        rows.append(
            {
                "seed": result.seed,
                "system": s.name,
                "total_execution_time_s": s.run.total_execution_time_s,
                "serving_s": s.run.serving_s,
                "solve_s": s.run.solve_s,
                "reconfiguration_s": s.run.reconfiguration_s,
                "ttft_p99_s": s.run.stats.ttft_s.p99,
                "goodput": s.run.stats.goodput,
                "device_hours": s.run.resources.device_s / 3600,
                "faults": s.run.faults.total,
                "not_served": s.run.stats.rejected + s.run.stats.lost,
                "evolving_saves": saving(ours, s) if ours is not None else None,
            }
        )
    return rows


def summary(results: Sequence[ExperimentResult]) -> list[dict[str, Any]]:
    """Medians over seeds, a row for each system."""
    names = list(dict.fromkeys(s.name for r in results for s in r.systems))
    rows: list[dict[str, Any]] = []
    for name in names:
        runs = [row for r in results for row in rows_of(r) if row["system"] == name]
        medians = {
            key: statistics.median(row[key] for row in runs)
            for key in runs[0]
            if key not in {"seed", "system"} and runs[0][key] is not None
        }
        rows.append({"seed": "median", "system": name, **medians})
    return rows


def targets(results: Sequence[ExperimentResult]) -> list[Target]:
    """What the first loop should at least show: it is not worse than any rival, and served everything."""
    worst, mean, not_served = [], [], 0
    for result in results:
        ours = result.system(SystemKind.EVOLVING)
        if ours is None:
            continue
        savings = [saving(ours, s) for s in result.rivals]
        worst.append(min(savings))
        mean.append(statistics.fmean(savings))
        not_served += ours.run.stats.rejected + ours.run.stats.lost
    return [
        Target("evolving_saves_against_the_best_rival", statistics.median(worst), 0.0, "higher"),
        Target("evolving_saves_on_average", statistics.median(mean), 0.0, "higher"),
        Target(f"requests_not_served_by_{EVOLVING}", float(not_served), 0.0, "lower", "requests"),
    ]


if __name__ == "__main__":
    sys.exit(run_main(main))
