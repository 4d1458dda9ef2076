"""Graphs that fit their inputs: peak memory by order, small towers merged, variants by input regime.

*Peaks*: families of branchy networks; program order (values freed at their last use) against the order found, with
memory reused, and with stretches run in slices; measured by following every tensor, and by what the allocator gives;
bit-exact. *Towers*: horizontal fusion against the best of eager and
torch.compile of the unfused. *Overlap*: two lanes of one thread
against one lane of two. *Stream*: the multi-modal example over a stream whose mix changes, against the best in
hindsight of four static variants, each over the whole stream, twice; variants by regime after a restart (opened from the
store and timed once before the first call, as the static ones are compiled before it), and knowing nothing (opened and
tried while they serve). *Settling*: from the first call of a mix nobody
has seen, with an empty store, to the variant in force.

Compiled variants are kept under --store, so that a second run measures and does not build.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch
from rich.console import Console

from benchmarks.common import (
    BenchmarkInputError,
    Options,
    Target,
    parse_options,
    progress,
    publish,
    rows_table,
    run_main,
    targets_table,
)
from benchmarks.graphing.families import FAMILIES, QUICK_FAMILIES
from benchmarks.graphing.lanes import lane_rows
from benchmarks.graphing.peaks import peak_rows
from benchmarks.graphing.stream import (
    QUICK_RECIPES,
    RECIPES,
    Branching,
    Lane,
    build_all,
    compiled_pieces,
    compiled_whole,
    make_stream,
    phase_rows,
    race,
    serving,
    settle,
)
from benchmarks.graphing.towers import CASES, tower_rows
from execution.regimes.builder import Site
from execution.regimes.module import RegimeModule
from execution.regimes.multimodal import MultiModalAnalysis

PARTS = ("peaks", "towers", "overlap", "stream", "settling")
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
        parser.add_argument("--threads", default="1,2", help="thread counts (default: 1,2)")
        parser.add_argument(
            "--store", help="folder of compiled variants (default: one in the temporary folder)"
        )
        parser.add_argument(
            "--limit",
            type=float,
            default=0.0,
            help="seconds that a new mix may take to settle (default: 240)",
        )
        parser.add_argument("--calls", type=int, default=0, help="calls of each phase of the stream")

    options = parse_options("graphs", __doc__, argv, extend=extend)
    parts = options.extra.parts.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        raise BenchmarkInputError(f"graphs: no part is called {unknown[0]!r}: parts are {', '.join(PARTS)}")
    rows: list[Row] = []
    targets: list[Target] = []
    if "peaks" in parts:
        with progress(options, "peaks"):
            _peaks(options, rows, targets)
    for threads in _threads(options):
        torch.set_num_threads(threads)
        if "towers" in parts:
            with progress(options, f"towers, {threads} threads"):
                _towers(options, threads, rows, targets)
        if "stream" in parts:
            with progress(options, f"stream, {threads} threads"):
                _stream(options, threads, rows, targets)
    if "overlap" in parts:
        with progress(options, "overlap"):
            _overlap(options, rows)
    if "settling" in parts:
        torch.set_num_threads(1)
        with progress(options, "settling"):
            _settling(options, rows, targets)
    return _show(options, rows, targets)


def _show(options: Options, rows: list[Row], targets: list[Target]) -> int:
    """A table a part for people: the parts measure unlike things."""
    if options.json:
        return publish(options, rows, targets)
    console = Console(width=None if sys.stdout.isatty() else 200)
    for part in PARTS:
        shown = [
            {key: value for key, value in row.items() if key != "part"} for row in rows if row["part"] == part
        ]
        if shown:
            console.print(rows_table(part, shown))
    console.print(targets_table(targets))
    return 0


def _peaks(options: Options, rows: list[Row], targets: list[Target]) -> None:
    torch.set_num_threads(1)
    families = QUICK_FAMILIES if options.quick else FAMILIES
    found = peak_rows(families, 3 if options.quick else 9, options.seed)
    rows += found
    if not all(row["bit_exact"] for row in found):
        raise BenchmarkInputError("graphs: a reordered graph gave other bits: this is a defect, not a figure")
    for name, key in (
        ("peak_memory_program_order", "gain"),
        ("peak_memory_program_order_order_alone", "order_gain"),
        ("peak_memory_program_order_order_and_reuse", "reuse_gain"),
        ("peak_memory_program_order_by_the_allocator", "allocator_gain"),
        ("peak_memory_module_as_written", "gain_over_module"),
    ):
        targets.append(
            Target(f"{name}_median_of_families", median(row[key] for row in found), 2.0, "higher", "x")
        )


def _towers(options: Options, threads: int, rows: list[Row], targets: list[Target]) -> None:
    cases = CASES[:2] if options.quick else CASES
    found = tower_rows(cases, threads, 50, compiled=_compiler() and not options.quick, seed=options.seed)
    rows += found
    gain = geometric_mean([row["gain"] for row in found])
    targets.append(Target(f"horizontal_towers_{threads}_threads", gain, 1.2, "higher", "x"))


def _overlap(options: Options, rows: list[Row]) -> None:
    model = MultiModalAnalysis(seed=options.seed)
    cases: list[tuple[str, torch.nn.Module, Any]] = [
        ("multi-modal example", model, make_stream(model, 1, options.seed)[4])
    ]
    for family in FAMILIES[:2]:
        inputs = family.inputs(torch.Generator().manual_seed(options.seed))
        cases.append((family.name, family.build().eval(), inputs))
    rows += lane_rows(cases, 9 if options.quick else 25)


def _stream(options: Options, threads: int, rows: list[Row], targets: list[Target]) -> None:
    compiled = _compiler() and not options.quick
    model = MultiModalAnalysis(seed=options.seed)
    calls = options.extra.calls or (12 if options.quick else 40)
    stream = make_stream(model, calls, options.seed)
    site = Site(_store(options), threads)
    recipes = RECIPES if compiled else QUICK_RECIPES
    with progress(options, "  variants in the store"):
        refused = [what for what in build_all(model, stream, site, recipes).values() if isinstance(what, str)]
    rows.extend({"part": "stream", "threads": threads, "what": f"refused: {what}"} for what in refused)
    statics = [Lane("eager", model, []), Lane("eager, skips what is absent", Branching(model), [])]
    if compiled:
        with progress(options, "  static variants"):
            statics.append(
                Lane("whole graph compiled", compiled_whole(model, stream[0], site.store, threads), [])
            )
            statics.append(Lane("skips what is absent, pieces compiled", compiled_pieces(model), []))
            with torch.no_grad():
                for batch in stream:  # every shape and mix, so that nothing compiles while it is timed
                    statics[-1].call(*batch)
    with serving(model, recipes, site) as served, serving(model, recipes, site) as fresh:
        started_s = time.perf_counter()
        variants = served.preload()
        start_s = time.perf_counter() - started_s
        lanes = [*statics, Lane(_RESTARTED, served, []), Lane(_FRESH, fresh, [])]
        for turn in (0, 1):
            race(lanes, stream, turn=turn)
        for turn in (0, 1):
            part = slice(turn * len(stream), (turn + 1) * len(stream))
            told = [Lane(f"{lane.name} (pass {turn + 1})", lane.call, lane.seconds[part]) for lane in lanes]
            rows += phase_rows(told, calls, "stream", threads)
        for what, value in (
            ("worst error, in tolerances", _worst(served, model, stream, site)),
            ("decision, us", _decision_us(served, stream)),
            (f"start with {variants} variants of the store, ms", 1e3 * start_s),
        ):
            rows.append({"part": "stream", "threads": threads, "what": what, "mean_ms": value})
        if not options.json:
            print(served.explain(), file=sys.stderr)
    targets += _stream_targets(lanes, f"multimodal_{threads}_threads", len(stream))


_RESTARTED, _FRESH = "by regime", "by regime, knows nothing"


def _stream_targets(lanes: Sequence[Lane], label: str, calls: int) -> list[Target]:
    """Of whole streams: the best static variant in hindsight over ours, restarted and knowing nothing."""
    times = {lane.name: sum(lane.seconds) for lane in lanes}
    second = {lane.name: sum(lane.seconds[calls:]) for lane in lanes}
    ours = (_RESTARTED, _FRESH)
    best = min(s for name, s in times.items() if name not in ours)
    graph = min(s for name, s in times.items() if name not in ours and "skips" not in name)
    later = min(s for name, s in second.items() if name not in ours)
    figures = {
        "over_best_static": best / times[_RESTARTED],
        "over_best_static_knowing_nothing": best / times[_FRESH],
        "over_best_static_graph": graph / times[_RESTARTED],
        "over_best_static_once_settled": later / second[_FRESH],
    }
    return [Target(f"{label}_{name}", value, 1.25, "higher", "x") for name, value in figures.items()]


def _settling(options: Options, rows: list[Row], targets: list[Target]) -> None:
    model = MultiModalAnalysis(seed=options.seed)
    stream = make_stream(model, 1, options.seed)
    recipes = QUICK_RECIPES if options.quick or not _compiler() else RECIPES
    limit_s = options.extra.limit or (25.0 if options.quick else 240.0)
    empty = Path(tempfile.mkdtemp(prefix="autopoiesis-graphs-"))
    try:
        for what in ("empty store", "filled store"):
            found = settle(model, stream[2], Site(empty), recipes, limit_s, tell=_tell)
            row: Row = {
                "part": "settling", "threads": 1, "what": f"{what}: {found.holder}", "calls": found.calls,
                "first_better_s": found.first_better_s, "settled_s": found.settled_s,
                "median_call_ms": found.median_ms, "slowest_call_ms": found.slowest_ms,
                "at_the_limit": f"{found.unfinished} within {limit_s:g} s" if found.unfinished else "",
            }  # fmt: skip
            rows.append(row)
            name = f"new_mix_to_better_variant_{what.replace(' ', '_')}_s"
            targets.append(Target(name, found.first_better_s, 30.0, "lower", "s"))
    finally:
        shutil.rmtree(empty, ignore_errors=True)


def _tell(what: str) -> None:
    print(f"  {what}", file=sys.stderr)


def _worst(served: RegimeModule, model: MultiModalAnalysis, stream: Sequence[Any], site: Site) -> float:
    with torch.no_grad():
        return max(
            site.tolerance.worst(served(*batch), model(*batch))
            for batch in stream[:: max(1, len(stream) // 24)]
        )


def _decision_us(served: RegimeModule, stream: Sequence[Any]) -> float:
    """Reading the regime, choosing and learning, without running anything."""
    state = next(iter(served.states().values()))
    rounds = 2000
    started_s = time.perf_counter()
    for i in range(rounds):
        served.reader.read(stream[i % 8])
        name = state.choose()
        state.learn(name, state.estimates[name].seconds)
    return 1e6 * (time.perf_counter() - started_s) / rounds


def _threads(options: Options) -> list[int]:
    try:
        found = [int(text) for text in options.extra.threads.split(",")]
    except ValueError:
        raise BenchmarkInputError(
            f"graphs: --threads takes numbers like 1,2, not {options.extra.threads!r}"
        ) from None
    if min(found) < 1:
        raise BenchmarkInputError("graphs: --threads takes numbers of at least 1")
    return found[:1] if options.quick else found


def _store(options: Options) -> Path:
    return Path(options.extra.store or Path(tempfile.gettempdir()) / "autopoiesis-graphs-store")


def _compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


if __name__ == "__main__":
    sys.exit(run_main(main))
