"""Tiled Cholesky on StarPU's measured kernel models, simulated: makespan over a lower bound.

DATA_DIR (or its folder `starpu`) holds StarPU's history models `chol_KERNEL.MACHINE` of potrf, trsm, syrk and gemm; the
machines are those found there. Each tile lies in host memory at the start. The bound of the ratios is the
larger of the area bound (linear program) and the critical path, without any transfer.

Link model (`contended`, the one that is judged): each GPU behind a full-duplex wire of `--bytes-per-s` a direction
(5.5e9, what the published figures were computed with), one transfer at a time; all wires of one direction share
a host link that carries `--host-streams` (2) transfers at full speed; from GPU to GPU over host memory. `free`: the
same wires without any contention, which is the model of the published figures. `no prefetch`: contended, and inputs
move only once a unit has taken the task.

Planner, HEFT, PEFT, dmda, dmdas and eager all run in the same simulator, and every schedule is checked. HEFT's
and the planner's plans without prefetch are carried out by the same following dispatcher. `published` rows are
figures of others for the same models, from a simulator without contention.

The planner's budget counts CPU time of its one core, so that other load changes no plan. `planning_s`, and the
target on it, are wall time from the numbers of the model files to the plan, imports aside: run it idle.

With `--memories`, GPU memories hold a share of all tiles: `bounds ignored` is the plan without bounds, carried out
with the least recently used tile going first; `foreseen` the same plan, what it needs last going first; `known` the
plan that counts evictions and is judged by what comes of it.

Robustness: durations and transfers with lognormal noise, the plan followed with online correction against
dmdas, HEFT followed the same way, and the plan to the letter, under the same noise.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkInputError, Options, Target, parse_options, progress, publish, run_main
from physical.scheduling.bounds import area, critical_path_s, staged_bound_s, warm_up
from physical.scheduling.carried import compared
from physical.scheduling.disturbance import Disturbance, Loss, Slowdown
from physical.scheduling.families import cholesky
from physical.scheduling.following import Following
from physical.scheduling.heft import Heft, Peft
from physical.scheduling.machine import host_with_accelerators
from physical.scheduling.plan import Plan
from physical.scheduling.planner import Planner
from physical.scheduling.problem import Problem
from physical.scheduling.queues import Dmda, Dmdas, Eager
from physical.scheduling.replay import replay
from physical.scheduling.simulation import simulate
from physical.scheduling.trace import check, trace_of

TILES = (8, 16, 24, 32)
TILE_BYTES = 960 * 960 * 4
TOUCHED = {"potrf": 1, "trsm": 2, "syrk": 2, "gemm": 3}
"""Tiles that a kernel's size in StarPU's models counts."""
CPUS = {"mirage": 9, "sirocco": 20}
"""CPU workers beside one that drives each GPU."""
PUBLISHED: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "mirage": {
        "eager": (5.21, 2.11, 1.39, 1.23),
        "dmdas": (1.68, 1.32, 1.17, 1.10),
        "heft": (1.64, 1.37, 1.18, 1.12),
    },
    "sirocco": {
        "eager": (2.53, 2.80, 1.96, 1.50),
        "dmdas": (1.21, 1.59, 1.43, 1.25),
        "heft": (1.13, 1.49, 1.45, 1.21),
    },
}
PLAN_TARGET_S = 2.0
BUDGET_S, QUICK_BUDGET_S = 1.45, 0.6
NOISE = (0.05, 0.1, 0.2)
ENTRY = re.compile(r"^[0-9a-f]{8}\s+(\d+)\s+\S+\s+(\S+)\s")


@dataclass(frozen=True, slots=True)
class Measured:
    """One machine's kernel models."""

    name: str
    seconds: Mapping[tuple[str, str, int], float]
    """(kernel, kind, size) -> mean over the devices of the kind."""
    gpus: int


def read_models(folder: Path) -> list[Measured]:
    """All machines with a model of each kernel. Raises BenchmarkInputError."""
    if (folder / "starpu").is_dir():
        folder = folder / "starpu"
    names = sorted({path.suffix[1:] for path in folder.glob("chol_*.*") if path.suffix})
    result = []
    for name in names:
        seconds: dict[tuple[str, str, int], list[float]] = {}
        gpus: set[str] = set()
        for kernel in TOUCHED:
            path = folder / f"chol_{kernel}.{name}"
            if not path.is_file():
                raise BenchmarkInputError(
                    f"cholesky: no file {path}: machine '{name}' needs all of {', '.join(TOUCHED)}"
                )
            for kind, device, size, mean_s in _entries(path):
                seconds.setdefault((kernel, kind, size), []).append(mean_s)
                if kind == "gpu":
                    gpus.add(device)
        result.append(
            Measured(name, {key: statistics.fmean(values) for key, values in seconds.items()}, len(gpus))
        )
    if not result:
        raise BenchmarkInputError(f"cholesky: no models chol_KERNEL.MACHINE in {folder}")
    return result


def _entries(path: Path) -> list[tuple[str, str, int, float]]:
    """(kind, device, size, mean seconds) of each line of a StarPU history model."""
    found = []
    for block in path.read_text().split("# COMB_")[1:]:
        lines = block.splitlines()
        after = {key: lines[i + 1].strip() for i, line in enumerate(lines[:-1]) for key in _keys(line)}
        kind = {"0": "cpu", "1": "gpu"}.get(after.get("type", ""))
        if kind is None:
            continue
        for line in lines:
            match = ENTRY.match(line)
            if match and math.isfinite(float(match[2])) and float(match[2]) > 0:
                found.append((kind, after.get("id", "0"), int(match[1]), 1e-6 * float(match[2])))
    if not found:
        raise BenchmarkInputError(f"cholesky: {path} holds no measured entries")
    return found


def _keys(line: str) -> list[str]:
    if "device type" in line:
        return ["type"]
    return ["id"] if "device id" in line else []


def problem_of(model: Measured, tiles: int, options: argparse.Namespace, *, contention: bool) -> Problem:
    """Cholesky on a machine. Raises BenchmarkInputError where a kernel was not measured at this tile."""
    tile = options.tile_bytes
    for kernel, count in TOUCHED.items():
        if not any((kernel, kind, count * tile) in model.seconds for kind in ("cpu", "gpu")):
            sizes = sorted(size // TOUCHED["potrf"] for k, _, size in model.seconds if k == "potrf")
            raise BenchmarkInputError(
                f"cholesky: machine '{model.name}' has no {kernel} of {count} tiles of {tile} bytes; potrf was "
                f"measured at {sorted(set(sizes))}: choose one with --tile-bytes"
            )
    machine = host_with_accelerators(
        model.name,
        options.cpus or CPUS.get(model.name, 8),
        model.gpus,
        bytes_per_s=options.bytes_per_s,
        host_streams=options.host_streams,
        contention=contention,
    )
    return Problem(
        cholesky(tiles, tile),
        machine,
        lambda task, kind: model.seconds.get((task.kernel, kind, int(task.size))),
    )


class Column:
    """The rows of one machine and size, each over the same bound."""

    def __init__(self, model: Measured, tiles: int, bound_s: float) -> None:
        self.common = {"machine": model.name, "tiles": tiles}
        self.bound_s = bound_s
        self.rows: list[dict[str, Any]] = []

    def add(self, scheduler: str, links: str, makespan_s: float, took_s: float | None = None) -> None:
        """One row."""
        self.rows.append(
            {
                **self.common,
                "links": links,
                "scheduler": scheduler,
                "over_bound": makespan_s / self.bound_s,
                "makespan_ms": 1e3 * makespan_s,
                "planning_s": took_s,
            }
        )


def one_column(
    model: Measured, tiles: int, options: Options
) -> tuple[list[dict[str, Any]], list[Target], Problem, Plan]:
    """All schedulers on one machine and size."""
    budget_s = QUICK_BUDGET_S if options.quick else BUDGET_S
    warm_up()
    began = time.perf_counter()
    problem = problem_of(model, tiles, options.extra, contention=True)
    plan = Planner(budget_s, clock=time.process_time).plan(problem, options.seed)
    planned_s = time.perf_counter() - began
    check(trace_of(plan), exact=True)
    area_s, path_s = area(problem).bound_s, critical_path_s(problem)
    column = Column(model, tiles, max(area_s, path_s))
    free = problem_of(model, tiles, options.extra, contention=False)
    freely = Planner(budget_s, clock=time.process_time).plan(free, options.seed)
    column.add("planner", "contended", check(replay(plan), exact=True).makespan_s, planned_s)
    column.add("planner", "free", check(replay(freely), exact=True).makespan_s)
    late = check(simulate(problem, Following(plan), prefetch=False))
    column.add("planner", "no prefetch", late.makespan_s)
    peers(column, problem, free)
    column.add("bound: area", "-", area_s)
    column.add("bound: critical path", "-", path_s)
    column.add("bound: staged, tighter", "-", staged_bound_s(problem))
    published, targets = judged(model, tiles, options, plan.makespan_s / column.bound_s)
    if tiles == max(TILES):
        name = f"planning_s/{model.name}/{problem.tasks}_tasks"
        targets.append(Target(name, planned_s, PLAN_TARGET_S, "lower", "s"))
    return [*column.rows, *published], targets, problem, plan


def peers(column: Column, problem: Problem, free: Problem) -> None:
    """HEFT and PEFT as plans, StarPU's policies as dispatchers."""
    literature: tuple[Heft | Peft, ...] = (Heft(), Peft())
    for peer in literature:
        for links, of in (("contended", problem), ("free", free)):
            began = time.perf_counter()
            made = peer.plan(of)
            took_s = time.perf_counter() - began
            column.add(peer.name, links, check(replay(made), exact=True).makespan_s, took_s)
            if of is problem:
                late = check(simulate(of, Following(made), prefetch=False)).makespan_s
                column.add(peer.name, "no prefetch", late)
    policies: tuple[type[Dmda | Eager], ...] = (Dmdas, Dmda, Eager)
    for make in policies:
        for links, of, prefetch in (
            ("contended", problem, True),
            ("free", free, True),
            ("no prefetch", problem, False),
        ):
            trace = check(simulate(of, make(), prefetch=prefetch), exact=True)
            column.add(make.name, links, trace.makespan_s)


def memories(model: Measured, tiles: int, options: Options) -> list[dict[str, Any]]:
    """The GPUs' memories bounded: plans that know it against plans that do not, in the same simulation."""
    free = problem_of(model, tiles, options.extra, contention=True)
    column = Column(model, tiles, max(area(free).bound_s, critical_path_s(free)))
    planner = Planner(QUICK_BUDGET_S if options.quick else BUDGET_S, clock=time.process_time)
    schedulers: tuple[Planner | Heft | Peft, ...] = (planner, Heft(), Peft())
    for share in options.extra.memories:
        problem = free.with_memories(share)
        for scheduler in schedulers:
            for bounds, makespan_s in compared(problem, scheduler, options.seed).items():
                column.add(f"{scheduler.name}, bounds {bounds}", f"memories {share:g}", makespan_s)
        column.add("dmdas", f"memories {share:g}", check(simulate(problem, Dmdas())).makespan_s)
    return column.rows


def judged(
    model: Measured, tiles: int, options: Options, over_bound: float
) -> tuple[list[dict[str, Any]], list[Target]]:
    """Others' figures of the same column, and the best of them as target; none where nobody published any."""
    if model.name not in PUBLISHED or tiles not in TILES or options.extra.tile_bytes != TILE_BYTES:
        return [], []
    at = TILES.index(tiles)
    figures = {scheduler: values[at] for scheduler, values in PUBLISHED[model.name].items()}
    common = {"machine": model.name, "tiles": tiles, "links": "published"}
    rows = [{**common, "scheduler": scheduler, "over_bound": figure} for scheduler, figure in figures.items()]
    best = min(figures["dmdas"], figures["heft"])
    return rows, [Target(f"over_bound/{model.name}/{tiles}", over_bound, best, "lower")]


def robustness(
    model: Measured, tiles: int, problem: Problem, plan: Plan, options: Options
) -> list[dict[str, Any]]:
    """The plan against others while durations are not what was expected."""
    heft = Heft().plan(problem)
    seeds = range(options.seed, options.seed + (2 if options.quick else 5))
    gpu = problem.units - 1
    cases: list[tuple[str, list[Disturbance]]] = [
        (f"noise {cv:.0%}", [Disturbance(cv, cv, seed=seed) for seed in seeds]) for cv in NOISE
    ]
    third = plan.makespan_s / 3
    cases.append(
        (
            "last GPU at half speed from a third on",
            [Disturbance(slowdowns=(Slowdown(gpu, third, math.inf, 2.0),))],
        )
    )
    cases.append(("a CPU lost at a third", [Disturbance(losses=(Loss(0, third),))]))
    bound_s = max(area(problem).bound_s, critical_path_s(problem))
    rows = []
    for name, disturbances in cases:
        figures: dict[str, list[float]] = {}
        for disturbance in disturbances:
            runs = {
                "planner, corrected": simulate(problem, Following(plan), disturbance=disturbance),
                "heft, corrected": simulate(problem, Following(heft), disturbance=disturbance),
                "dmdas": simulate(problem, Dmdas(), disturbance=disturbance),
            }
            if not disturbance.losses:
                runs["planner, to the letter"] = replay(plan, disturbance)
            for scheduler, trace in runs.items():
                figures.setdefault(scheduler, []).append(check(trace).makespan_s / bound_s)
        for scheduler, values in figures.items():
            rows.append(
                {
                    "machine": model.name,
                    "tiles": tiles,
                    "links": name,
                    "scheduler": scheduler,
                    "over_bound": statistics.fmean(values),
                }
            )
    return rows


def measure(options: Options) -> tuple[list[dict[str, Any]], list[Target]]:
    """All machines and sizes."""
    models = read_models(options.require_data_dir())
    sizes = options.extra.tiles or (TILES[:2] if options.quick else TILES)
    rows: list[dict[str, Any]] = []
    disturbed: list[dict[str, Any]] = []
    targets: list[Target] = []
    for model in models:
        for tiles in sizes:
            with progress(options, f"{model.name}, {tiles} x {tiles} tiles"):
                more, met, problem, plan = one_column(model, tiles, options)
                rows += more
                targets += met
                if options.extra.memories:
                    rows += memories(model, tiles, options)
                if tiles in {16, 24}:
                    disturbed += robustness(model, tiles, problem, plan, options)
    for tiles in sorted({row["tiles"] for row in disturbed}):
        for model in models:
            for cv in NOISE:
                same = {
                    row["scheduler"]: row["over_bound"]
                    for row in disturbed
                    if (row["machine"], row["tiles"], row["links"]) == (model.name, tiles, f"noise {cv:.0%}")
                }
                if same:
                    name = f"noise_{cv:g}/planner_over_dmdas/{model.name}/{tiles}"
                    targets.append(Target(name, same["planner, corrected"] / same["dmdas"], 1.0, "lower"))
    return rows + disturbed, targets


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tiles", type=int, nargs="+", help="tiles a side (default: 8 16 24 32)")
    parser.add_argument(
        "--tile-bytes", type=int, default=TILE_BYTES, help=f"default: {TILE_BYTES}, 960 x 960 floats"
    )
    parser.add_argument("--cpus", type=int, help="CPU workers (default: 9 mirage, 20 sirocco, 8 elsewhere)")
    parser.add_argument("--bytes-per-s", type=float, default=5.5e9, help="of a GPU's wire, each way")
    parser.add_argument(
        "--host-streams", type=int, default=2, help="transfers at once, each way, over the host link"
    )
    parser.add_argument(
        "--memories",
        type=float,
        nargs="+",
        metavar="SHARE",
        help="also with GPU memories that hold this share of all tiles each",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = parse_options("cholesky", __doc__, argv, extend=_extend)
    if min([*(options.extra.tiles or [1]), options.extra.host_streams, options.extra.cpus or 1]) < 1:
        raise BenchmarkInputError("cholesky: --tiles, --cpus and --host-streams must be at least 1")
    if options.extra.bytes_per_s <= 0 or options.extra.tile_bytes <= 0:
        raise BenchmarkInputError("cholesky: --bytes-per-s and --tile-bytes must be positive")
    if min(options.extra.memories or [1.0]) <= 0:
        raise BenchmarkInputError("cholesky: --memories must be positive")
    rows, targets = measure(options)
    return publish(options, rows, targets)


if __name__ == "__main__":
    sys.exit(run_main(main))
