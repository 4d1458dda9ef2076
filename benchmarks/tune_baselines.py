"""Gives every hand-written baseline a fair tuning of its own for each dynamic of `benchmarks.dynamics`.

Coordinate descent over the constants of the baseline, over the whole run of a development seed that no judged run
uses, in the nominal world: more hindsight than an operator ever has. A constant is changed when that saves more
than the noise. The result is `benchmarks/data/tuned_baselines.json`, which `benchmarks.dynamics` judges by.

    python -m benchmarks.tune_baselines DATA_DIR [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import commit
from loop.compose.dynamics import DYNAMICS, Dynamic
from loop.compose.replay import ReplayConfig, replay
from loop.compose.scoring import FALLBACK
from loop.compose.world import World, WorldSpec, build_world
from loop.contracts import Slo, Window
from loop.controller import ControllerConfig
from loop.logs import configure_logging
from strategy.baselines import list_baselines, load_baseline, tuned_baseline
from strategy.evolve.synthesise.constants import Constant, find_constants

FILE = Path(__file__).parent / "data" / "tuned_baselines.json"
DEVELOPMENT_SEED = 1001
STEP = 0.3
"""Of a constant's range (logarithmic where it spans much)."""
NOISE = 0.002
"""Share of the total that a change must save to be kept."""

Constants = dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune_baselines", description=__doc__)
    parser.add_argument("data_dir", nargs="?", type=Path)
    parser.add_argument("--only", nargs="*", help="dynamics (default: all)")
    options = parser.parse_args(argv)
    dynamics = [d for d in DYNAMICS if not options.only or d.name in options.only]
    known, totals = load_tuned(), load_totals()
    context = get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, initializer=configure_logging) as pool:
        jobs = {
            pool.submit(tune, d.name, name, options.data_dir): (d.name, name)
            for d in dynamics
            for name in list_baselines()
        }
        for number, job in enumerate(as_completed(jobs), 1):
            dynamic, name = jobs[job]
            constants, before_s, after_s = job.result()
            known.setdefault(dynamic, {})[name] = constants
            totals.setdefault(dynamic, {})[name] = round(after_s, 1)
            print(
                f"{number}/{len(jobs)} {dynamic} {name}: {before_s:.0f} -> {after_s:.0f} s {constants}",
                file=sys.stderr,
                flush=True,
            )
    FILE.parent.mkdir(exist_ok=True)
    document = {"seed": DEVELOPMENT_SEED, "commit": commit(), "constants": known, "total_s": totals}
    FILE.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


def load_tuned() -> dict[str, dict[str, Constants]]:
    """Dynamic -> baseline -> constants that are not the baseline's own; empty before any tuning."""
    if not FILE.exists():
        return {}
    constants: dict[str, dict[str, Constants]] = json.loads(FILE.read_text(encoding="utf-8"))["constants"]
    return constants


def load_totals() -> dict[str, dict[str, float]]:
    """Dynamic -> baseline -> total execution time in the development run, tuned; empty before any tuning."""
    if not FILE.exists():
        return {}
    totals: dict[str, dict[str, float]] = json.loads(FILE.read_text(encoding="utf-8")).get("total_s", {})
    return totals


def tune(dynamic: str, name: str, data_dir: Path | None) -> tuple[Constants, float, float]:
    """(constants changed, total execution time before, after) of one baseline in one dynamic."""
    tunable = find_constants(load_baseline(name).source)
    best: Constants = {}
    first_s = least_s = total_s(dynamic, name, best, data_dir)
    for constant in tunable:
        for value in neighbours(constant):
            changed = {**best, constant.name: value}
            took_s = total_s(dynamic, name, changed, data_dir)
            if took_s < least_s * (1.0 - NOISE):
                best, least_s = changed, took_s
    return best, first_s, least_s


def neighbours(constant: Constant) -> list[float]:
    """The values a step below and above, within the range that the constant states."""
    unit = constant.to_unit(constant.value)
    values = [constant.from_unit(unit + step) for step in (-STEP, STEP) if 0.0 <= unit + step <= 1.0]
    return [value for value in values if value != constant.value]


def total_s(dynamic: str, name: str, constants: Mapping[str, float], data_dir: Path | None) -> float:
    """Total execution time of a baseline with these constants over the development run."""
    world, windows, config = _setting(dynamic, data_dir)
    policy = tuned_baseline(name, constants)
    run = replay(world, policy, load_baseline(FALLBACK), windows, config)
    return run.total_execution_time_s + 3600.0 * (run.stats.rejected + run.stats.lost)


@cache
def _setting(dynamic: str, data_dir: Path | None) -> tuple[World, tuple[Window, ...], ReplayConfig]:
    found: Dynamic = next(d for d in DYNAMICS if d.name == dynamic)
    workload, windows = found.build(data_dir, DEVELOPMENT_SEED)
    spec = WorldSpec(found.cluster, found.models, seed=DEVELOPMENT_SEED)
    config: Any = ReplayConfig(ControllerConfig(), Slo(), found.window_s, workload.block_tokens)
    return build_world(spec), windows, config


if __name__ == "__main__":
    sys.exit(main())
