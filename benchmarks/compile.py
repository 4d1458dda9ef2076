"""Seconds from a hot path found to its better version in force, cache hits, and what readers feel meanwhile.

Four streams ask the torch engine without pause. Each round is a process's first hour in small, with an empty cache:
100 steps are looked at, then the decode step is compiled, proven and swapped in; `found_to_swapped_s` counts from the
end of looking. Then a second engine with the same cache: `hit_ms` is the time of the look-up, checksum and loading of one
artifact, `recalled_ms` that until the swap, with the weights packed. Token times while compilers work are
those of an engine for which compilation goes on in the background but nothing is swapped in; before and after it
the same load without; in turn, so that other load on the machine hits both.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Options, Target, parse_options, progress, publish, run_main
from benchmarks.evolving.load import Load, itl_ms, percentile, prompts_of
from execution.compiler.cache import ArtifactCache
from execution.engines.torch import TorchEngine
from execution.live.decode.backend import NativeBackend, decode_subject
from execution.live.decode.shape import read_model
from execution.live.decode.trial import TrialJob
from execution.live.decode.unit import DecodeSettings
from execution.live.decode.workshop import Workshop
from execution.live.journal import FileJournal
from execution.live.service import EvolutionSettings, ExecutionEvolution
from loop.contracts.engine import EngineSpec

MODEL, STREAMS, NEW_TOKENS = "tiny-llama", 4, 64
HIT_MS, DISTURBANCE = 50.0, 1.2
_LIMIT_S = 120.0


async def measure(options: Options) -> tuple[list[dict[str, Any]], list[Target]]:
    """Both parts for each thread count."""
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    for threads in options.extra.threads or ([1] if options.quick else [1, 2]):
        with progress(options, f"{threads} threads: from hot to swapped, and from the cache"):
            swaps = [await _rounds(options, threads) for _ in range(1 if options.quick else 3)]
        with progress(options, f"{threads} threads: readers while compilers work"):
            felt = await _felt(options, threads)
        row: dict[str, Any] = {"threads": threads, "streams": STREAMS}
        row |= {name: statistics.median(s[name] for s in swaps) for name in swaps[0]}
        rows.append(row | felt)
        targets += [
            Target(f"cache hit/{threads} threads", row["hit_ms"], HIT_MS, "lower", "ms"),
            Target(
                f"p99 ITL with compilers over without/{threads} threads",
                felt["p99_ratio"],
                DISTURBANCE,
                "lower",
                "x",
            ),
        ]
    return rows, targets


async def _rounds(options: Options, threads: int) -> dict[str, float]:
    """One engine with an empty cache, then one with a full one."""
    found = dict.fromkeys(
        ("found_to_swapped_s", "compile_s", "compile_cpu_s", "pause_ms", "hit_ms", "recalled_ms"),
        float("nan"),
    )
    with tempfile.TemporaryDirectory(prefix="compile-") as folder:
        for number in range(2):
            engine = _engine(threads)
            await engine.start()
            journal = FileJournal(None)
            evolution = ExecutionEvolution.of(
                engine, DecodeSettings(MODEL, 0, threads, recipes=1), cache=ArtifactCache(Path(folder)), journal=journal,
                settings=EvolutionSettings(place_limit_s=2.0),
            )  # fmt: skip
            load = Load(engine, prompts_of(options.seed, 12), NEW_TOKENS)
            load.start(STREAMS)
            evolution.start()
            wanted = "recalled" if number else "swapped"
            until_s = time.monotonic() + (_LIMIT_S if not options.quick else _LIMIT_S / 4)
            while time.monotonic() < until_s and not any(e["event"] == wanted for e in list(journal.entries)):
                await asyncio.sleep(0.02)
            await load.stop()
            await asyncio.to_thread(evolution.close)
            await engine.stop()
            told = {entry["event"]: entry for entry in journal.entries}
            if number == 0 and "swapped" in told:
                found |= {
                    "found_to_swapped_s": told["swapped"]["since_found_s"],
                    "compile_s": told["compiled"]["seconds"],
                    "compile_cpu_s": told["compiled"]["cpu_s"],
                    "pause_ms": told["swapped"]["pause_ms"],
                }
            elif number:
                found |= {
                    "hit_ms": told.get("cache-hit", {}).get("ms", float("nan")),
                    "recalled_ms": told.get("recalled", {}).get("ms", float("nan")),
                }
    return found


async def _felt(options: Options, threads: int) -> dict[str, float]:
    """Blocks with compilers at work beside and without, in turn."""
    engine = _engine(threads)
    await engine.start()
    config = engine.core.config
    shape, _ = read_model(
        engine.core.model,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.rms_norm_eps,
    )
    recipes = tuple(NativeBackend().recipes(decode_subject(shape, 16, threads)))
    load = Load(engine, prompts_of(options.seed, 12), NEW_TOKENS)
    times: dict[bool, list[list[float]]] = {True: [], False: []}
    rounds, block_s = (3, 2.0) if options.quick else (8, 4.0)
    load.start(STREAMS)
    await asyncio.sleep(1.0)
    with tempfile.TemporaryDirectory(prefix="compile-") as folder:
        job = TrialJob(MODEL, 0, threads, 16, False, (1, 4, 16), recipes, folder, ("",) * len(recipes))
        for number in range(rounds):
            for busy in (True, False) if number % 2 else (False, True):
                stop = _Compiling(job, Path(folder)) if busy else None
                began_s = time.perf_counter()
                await asyncio.sleep(block_s)
                if stop is not None:
                    await asyncio.to_thread(stop.close)
                times[busy].append(itl_ms(load.answers, began_s, began_s + block_s))
    await load.stop()
    await engine.stop()
    pairs = [
        (percentile(a, 0.99), percentile(b, 0.99)) for a, b in zip(times[True], times[False], strict=True)
    ]
    return {
        "p99_without_ms": statistics.median(b for _, b in pairs),
        "p99_with_ms": statistics.median(a for a, _ in pairs),
        "p99_ratio": statistics.median(a / b for a, b in pairs),
        "p50_ratio": statistics.median(
            percentile(a, 0.5) / percentile(b, 0.5) for a, b in zip(times[True], times[False], strict=True)
        ),
    }


class _Compiling:
    """Compilers and trials at work until it is closed."""

    def __init__(self, job: TrialJob, folder: Path) -> None:
        self._workshop = Workshop(folder)
        self._thread = threading.Thread(target=lambda: [None for _ in self._workshop.run(job)], daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Kill them."""
        self._workshop.close()
        self._thread.join(10.0)


def _engine(threads: int) -> TorchEngine:
    return TorchEngine(EngineSpec(engine="torch", model=MODEL, options={"threads": threads, "max_lanes": 16}))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = parse_options("compile", __doc__, argv, extend=_extend)
    torch.set_num_threads(1)
    rows, targets = asyncio.run(measure(options))
    return publish(options, rows, targets)


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, nargs="*", help="thread counts (default: 1 2)")


if __name__ == "__main__":
    sys.exit(run_main(main))
