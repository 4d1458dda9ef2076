"""Tokens per second of the torch engine before and after its execution evolved itself, live, under load.

One process, one engine, streams that never stop asking (prompts of 64 tokens, 96 new ones each, greedy): a while before,
all through evolution (profile, compile, prove, swap in, try in place), and after it. Then blocks in turn: evolved,
swapped back (the very same engine without what it found), and the peer: another engine whose modules were given to
`torch.compile` (of compiling norms and projections, whole layers, or the whole model the first was best on this model).
Ratios are of blocks side by side, medians. Batch sizes of 1, 4 and 16 streams, 1 and 2 threads.

int8 is a line of its own: another function. Its quality is reported beside its speed; nobody gets it unasked.

`same`: answers equal to those of an engine that nobody changed, token for token. Where they part, `ties` are those where
that engine's own choice was closer than 0.001 in log probability (float32 sums in another order); `different`
the others: for float32 there must be none.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import Options, Target, parse_options, progress, publish, run_main
from benchmarks.evolving.load import Load, agreement, expected, itl_ms, percentile, prompts_of
from execution.compiler.cache import ArtifactCache
from execution.engines.torch import TorchEngine
from execution.live.decode.unit import DecodeSettings
from execution.live.journal import FileJournal
from execution.live.module_rounds import ModuleSettings
from execution.live.service import EvolutionSettings, ExecutionEvolution
from loop.contracts.engine import EngineSpec

MODEL, NEW_TOKENS, PROMPTS = "tiny-llama", 96, 24
LOAD_STREAMS = 16
GAIN, GAIN_INT8, DISTURBANCE, PAUSE_MS, OVERHEAD = 1.3, 2.0, 1.2, 1.0, 0.01
_LIMIT_S = 180.0
"""Of evolution: what is not done by then has had no processor."""
Row = dict[str, Any]


async def measure(options: Options) -> tuple[list[Row], list[Target]]:
    """Everything, one thread count after the other."""
    rows: list[Row] = []
    targets: list[Target] = []
    quick = options.quick
    for threads in options.extra.threads or ([1] if quick else [1, 2]):
        for int8 in (False, True):
            found, aims = await _one(options, threads, int8=int8)
            rows += found
            targets += aims
    return rows, targets


async def _one(options: Options, threads: int, *, int8: bool) -> tuple[list[Row], list[Target]]:
    name = "int8" if int8 else "fp32"
    streams = options.extra.streams or ([1, 16] if options.quick else [1, 4, 16])
    prompts = prompts_of(options.seed, PROMPTS)
    plain, engine, peer = (_engine(threads) for _ in range(3))
    for one in (plain, engine, peer):
        await one.start()
    compiled = not int8 and not options.quick and not options.extra.no_peer
    with tempfile.TemporaryDirectory(prefix="evolution-") as folder:
        try:
            with progress(options, f"{name}, {threads} threads: answers of the unchanged engine"):
                wanted = await expected(plain, prompts, NEW_TOKENS)
            if compiled:
                with progress(options, f"{name}, {threads} threads: torch.compile of the peer"):
                    await compile_modules(peer)
                    await Load(peer, prompts, NEW_TOKENS).block(max(streams), 1)
            evolution = _evolution(engine, threads, Path(folder), int8=int8, quick=options.quick)
            load = Load(engine, prompts, NEW_TOKENS)
            with progress(options, f"{name}, {threads} threads: evolution under load"):
                live = await _evolve(load, evolution, 3.0 if options.quick else 6.0)
            rows: list[Row] = []
            targets: list[Target] = []
            for count in streams:
                with progress(options, f"{name}, {threads} threads, {count} streams: blocks"):
                    row = await _blocks(
                        options, load, evolution, Load(peer, prompts, NEW_TOKENS) if compiled else None, count
                    )
                rows.append({"function": name, "threads": threads, "streams": count} | row)
                goal = GAIN_INT8 if int8 else GAIN
                against = (
                    row["ratio"] if "over_compiled" not in row else min(row["ratio"], row["over_compiled"])
                )
                targets.append(
                    Target(
                        f"{name} over best peer/{count} streams, {threads} threads",
                        against,
                        goal,
                        "higher",
                        "x",
                    )
                )
            same = await agreement(plain, wanted, load.answers)
            rows.append(_live_row(name, threads, live, evolution, same))
            targets += _live_targets(name, threads, live, evolution, same, int8=int8)
            evolution.close()
            return rows, targets
        finally:
            for one in (plain, engine, peer):
                await one.stop()


async def _evolve(load: Load, evolution: ExecutionEvolution, before_s: float) -> dict[str, float]:
    """Load before, during and after evolution; what its readers saw."""
    load.start(LOAD_STREAMS)
    await asyncio.sleep(1.0)
    began_s = time.perf_counter()
    await asyncio.sleep(before_s)
    evolving_s = time.perf_counter()
    evolution.start()
    swapped_s = 0.0
    while evolution.state != "watching" and time.perf_counter() - evolving_s < _LIMIT_S:
        await asyncio.sleep(0.02)
        if not swapped_s and evolution.report()["in_force"]:
            swapped_s = time.perf_counter()
    over_s = time.perf_counter()
    await asyncio.sleep(before_s / 2)
    ended_s = time.perf_counter()
    await load.stop()
    before, during = itl_ms(load.answers, began_s, evolving_s), itl_ms(load.answers, evolving_s, over_s)
    compiling = itl_ms(load.answers, evolving_s, swapped_s or over_s)
    after = itl_ms(load.answers, over_s, ended_s)
    return {
        "to_swap_s": (swapped_s or over_s) - evolving_s,
        "evolution_s": over_s - evolving_s,
        "p99_before": percentile(before, 0.99),
        "p99_compiling": percentile(compiling, 0.99),
        "p99_during": percentile(during, 0.99),
        "p99_after": percentile(after, 0.99),
        "p50_before": percentile(before, 0.5),
        "p50_after": percentile(after, 0.5),
        "longest_during": max(during, default=float("nan")),
        "longest_before": max(before, default=float("nan")),
    }


async def _blocks(
    options: Options, load: Load, evolution: ExecutionEvolution, peer: Load | None, streams: int
) -> Row:
    """Evolved, swapped back, and the peer, in turn."""
    rounds = options.extra.rounds or (3 if options.quick else 7)
    requests = 3 if streams == 1 else 1
    speeds: dict[str, list[float]] = {"evolved": [], "swapped back": [], "compiled": []}
    kinds = ["evolved", "swapped back", *(["compiled"] if peer is not None else [])]
    for number in range(-1, rounds):
        for kind in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
            if kind == "compiled" and peer is not None:
                speed = await peer.block(streams, requests)
            else:
                await asyncio.to_thread(evolution.swap_in if kind == "evolved" else evolution.swap_back)
                await (
                    load.know_prompts()
                )  # int8 forgets them when it comes and goes, which is seldom but here
                speed = await load.block(streams, requests)
            if number >= 0:
                speeds[kind].append(speed)
    await asyncio.to_thread(evolution.swap_in)
    row: Row = {
        "tokens_per_s_before": statistics.median(speeds["swapped back"]),
        "tokens_per_s_after": statistics.median(speeds["evolved"]),
        "ratio": _ratio(speeds["evolved"], speeds["swapped back"]),
    }
    if peer is not None:
        row["tokens_per_s_compiled"] = statistics.median(speeds["compiled"])
        row["over_compiled"] = _ratio(speeds["evolved"], speeds["compiled"])
    return row | {"rounds": rounds}


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _live_row(
    name: str, threads: int, live: dict[str, float], evolution: ExecutionEvolution, same: Any
) -> Row:
    report = evolution.report()
    quality = (report["quality"] or {}).get("told", "")
    return {
        "function": f"{name}, live",
        "threads": threads,
        "streams": LOAD_STREAMS,
        "answers": same.answers,
        "same": same.equal,
        "ties": same.ties,
        "different": same.different,
        "lost": same.lost,
        "before_it_parts": same.prefix,
        "widest_gap": same.widest_gap,
        **live,
        "pause_ms": max(report["pauses_ms"], default=float("nan")),
        "sampling_overhead": report["sampling_overhead"],
        "shadow_checks": report["shadow_checks"],
        "quality": quality,
    }


def _live_targets(
    name: str, threads: int, live: dict[str, float], evolution: ExecutionEvolution, same: Any, *, int8: bool
) -> list[Target]:
    report, where = evolution.report(), f"{name}, {threads} threads"
    targets = [
        Target(
            f"p99 ITL during evolution over before/{where}",
            live["p99_during"] / live["p99_before"],
            DISTURBANCE,
            "lower",
            "x",
        ),
        Target(
            f"longest pause of a swap/{where}",
            max(report["pauses_ms"], default=float("nan")),
            PAUSE_MS,
            "lower",
            "ms",
        ),
        Target(f"sampling overhead/{where}", report["sampling_overhead"], OVERHEAD, "lower", "1"),
        Target(f"answers lost/{where}", float(same.lost), 0.0, "lower", "1"),
    ]
    if not int8:
        targets.append(
            Target(f"answers different beyond ties/{where}", float(same.different), 0.0, "lower", "1")
        )
    return targets


def _engine(threads: int) -> TorchEngine:
    return TorchEngine(EngineSpec(engine="torch", model=MODEL, options={"threads": threads, "max_lanes": 64}))


def _evolution(
    engine: TorchEngine, threads: int, folder: Path, *, int8: bool, quick: bool
) -> ExecutionEvolution:
    modules = ModuleSettings(most=0) if quick else ModuleSettings()
    return ExecutionEvolution.of(
        engine,
        DecodeSettings(MODEL, 0, threads, int8=int8),
        cache=ArtifactCache(folder / "cache"),
        journal=FileJournal(folder / "journal.jsonl"),
        settings=EvolutionSettings(modules=modules),
    )


async def compile_modules(engine: TorchEngine) -> None:
    """What a user would do: torch.compile for each module that takes and gives one tensor."""
    for name, module in (await engine.modules()).items():
        if name.rpartition(".")[2] in {"attention_norm", "mlp_norm", "qkv", "output", "mlp"}:
            compiled: nn.Module = torch.compile(module)  # type: ignore[assignment]
            await engine.replace_module(name, compiled)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = parse_options("engine_evolution", __doc__, argv, extend=_extend)
    torch.set_num_threads(1)  # of all but the step threads, which choose for themselves
    rows, targets = asyncio.run(measure(options))
    return publish(options, rows, targets)


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, nargs="*", help="thread counts (default: 1 2)")
    parser.add_argument("--streams", type=int, nargs="*", help="streams at once (default: 1 4 16)")
    parser.add_argument("--rounds", type=int, help="rounds of blocks (default: 7)")
    parser.add_argument(
        "--no-peer", action="store_true", help="leave out torch.compile, which takes a minute"
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
