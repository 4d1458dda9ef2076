"""What the command line does: profile, tune and bench of a served model, or of anybody's module."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import nn

from execution.compiler.cache import ArtifactCache, default_root
from execution.compiler.events import Accepted, Compiling, Finished, NotACandidate, Refused
from execution.compiler.port import Bucket, CompileError
from execution.compiler.service import CompilerService, Demand, Samples
from execution.engines.torch import TorchEngine
from execution.graph.cost import Cost, roofline_s
from execution.live.decode.unit import DecodeSettings
from execution.live.explain import in_words
from execution.live.journal import FileJournal
from execution.live.load import OwnLoad
from execution.live.sampler import StepSampler, bytes_of, measure_peaks, weights_of
from execution.live.service import EvolutionSettings, ExecutionEvolution
from execution.live.subjects import engine_subject, engine_weights
from loop.contracts.engine import EngineSpec

_STAGES = ("starting", "observing", "compiling", "trying in place", "watching")


def profile_model(model: str, streams: int, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Hot paths of an engine under a load of its own, most to win first. Raises EngineError."""

    async def run() -> list[dict[str, Any]]:
        async with _engine(model, threads) as engine:
            sampler = StepSampler(engine.core, threads=threads, share=0.05)
            engine.between_steps(lambda core: setattr(core, "observer", sampler))
            await OwnLoad(engine, streams).run(seconds)
            return [
                asdict(p) | {"could_win_s": p.could_win_s} for p in sampler.profile(measure_peaks(threads))
            ]

    return asyncio.run(run())


def profile_module(target: str, sizes: tuple[int, ...], threads: int, seconds: float) -> list[dict[str, Any]]:
    """The same of a module's parts. Raises ValueError."""
    module, x = _module(target, sizes)
    torch.set_num_threads(threads)
    peaks = measure_peaks(threads)
    found: dict[str, list[Any]] = defaultdict(lambda: [0, 0.0, Cost()])
    for name, part in module.named_modules():
        part.forward = _timed(name or "(all)", part, part.forward, found)
    calls, began_s = 0, time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() - began_s < seconds or not calls:
            module(x)
            calls += 1
    whole_s = max(found["(all)"][1], 1e-12)
    lines = [
        {
            "unit": name, "rows": [sizes[0], sizes[0]], "threads": threads, "calls": count, "spent_s": spent_s,
            "floor_s": min(spent_s, roofline_s(cost, peaks)),
            "could_win_s": max(0.0, spent_s - roofline_s(cost, peaks)), "share": spent_s / whole_s,
        }
        for name, (count, spent_s, cost) in found.items()
    ]  # fmt: skip
    return sorted(lines, key=lambda line: -line["could_win_s"])


def tune_model(  # noqa: PLR0917 one for each option
    model: str,
    streams: int,
    threads: int,
    limit_s: float,
    cache_dir: Path | None,
    errors: Console,
    *,
    int8: bool,
) -> list[str]:
    """Evolve an engine under a load of its own; lines that say what came of it. Raises EngineError."""

    async def run() -> list[str]:
        async with _engine(model, threads) as engine:
            evolution = _evolution(engine, model, threads, cache_dir, int8=int8)
            journal = evolution.journal
            load = OwnLoad(engine, streams)
            running = asyncio.create_task(load.run())
            evolution.start()
            try:
                await _shown(evolution, journal, limit_s, errors)
            finally:
                load.stopped = True
                await asyncio.to_thread(evolution.close)
            await running
            report = evolution.report()
            told = [
                in_words(entry) for entry in journal.entries if entry["event"] not in {"raced", "started"}
            ]
            force = ", ".join(f"{rows} rows: {name}" for rows, name in report["in_force"].items())
            return [*told, f"in force: {force or 'the original'}"]

    return asyncio.run(run())


async def _shown(
    evolution: ExecutionEvolution, journal: FileJournal, limit_s: float, errors: Console
) -> None:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("starting", total=len(_STAGES) - 1)
        until_s = time.monotonic() + limit_s
        while time.monotonic() < until_s:
            state = evolution.state
            last = in_words(journal.entries[-1]) if journal.entries else ""
            done = next((i for i, stage in enumerate(_STAGES) if state.startswith(stage)), len(_STAGES) - 1)
            progress.update(task, description=f"{state}: {last[:90]}", completed=done)
            if state == "watching" or state.startswith("ended"):
                return
            await asyncio.sleep(0.1)


def tune_module(  # noqa: PLR0917 one for each option
    target: str, sizes: tuple[int, ...], threads: int, limit_s: float, cache_dir: Path | None, errors: Console
) -> list[str]:
    """Search for the best kernel of a module; the cache keeps what is finished. Raises GraphError, ValueError."""
    module, x = _module(target, sizes)
    torch.set_num_threads(threads)
    told: list[str] = []
    service = CompilerService(ArtifactCache(cache_dir or default_root()))
    try:
        with torch.inference_mode():
            subject = engine_subject(module, x, Bucket(sizes[0], sizes[0]), threads)
        samples = Samples(((x,),), engine_weights(module, subject))
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=errors,
            transient=True,
        ) as bar:
            task = bar.add_task(target)
            for event in service.best_sync(subject, samples, demand=Demand(expected_compile_s=limit_s)):
                if isinstance(event, Compiling):
                    bar.update(task, description=f"{target}: {event.recipe.backend} {event.recipe.name}")
                elif isinstance(event, Refused | Accepted):
                    told.append(f"{event.recipe.backend} {event.recipe.name}: {event.verdict.explain()}")
                elif isinstance(event, NotACandidate):
                    told.append(f"{event.backend}: not a candidate: {event.reason}")
                elif isinstance(event, Finished):
                    best = event.best
                    name = "eager stays" if best is None else f"{best.recipe.backend} {best.recipe.name}"
                    told.append(f"best: {name}; {event.compile_s:.1f} CPU seconds")
    finally:
        service.close()
    return told


def bench_model(
    model: str, streams: int, threads: int, rounds: int, cache_dir: Path | None, *, int8: bool
) -> dict[str, Any]:
    """Tokens a second with and without what the cache holds. Raises EngineError, CompileError."""

    async def run() -> dict[str, Any]:
        async with _engine(model, threads) as engine:
            settings = EvolutionSettings(search=False, watch_every_s=0.2)
            evolution = _evolution(engine, model, threads, cache_dir, int8=int8, settings=settings)
            warm = OwnLoad(engine, streams, seed=-1)
            running = asyncio.create_task(warm.run())
            evolution.start()
            while evolution.state != "watching" and not evolution.state.startswith("ended"):
                await asyncio.sleep(0.02)
            warm.stopped = True
            await running
            if not evolution.report()["in_force"]:
                evolution.close()
                raise CompileError(
                    f"nothing proven for {model} on {threads} threads is in the cache: `tune` it first"
                )
            speeds: dict[bool, list[float]] = {True: [], False: []}
            try:
                for number in range(rounds + 1):
                    for on in (True, False) if number % 2 else (False, True):
                        await asyncio.to_thread(evolution.swap_in if on else evolution.swap_back)
                        load = OwnLoad(engine, streams, seed=number)
                        began_s = time.perf_counter()
                        await load.run(0.7)
                        if number:
                            speeds[on].append(load.tokens / (time.perf_counter() - began_s))
            finally:
                await asyncio.to_thread(evolution.close)
            return {
                "model": model, "threads": threads, "streams": streams, "int8": int8,
                "tokens_per_s_before": statistics.median(speeds[False]),
                "tokens_per_s_after": statistics.median(speeds[True]),
                "ratio": statistics.median(a / b for a, b in zip(speeds[True], speeds[False], strict=True)),
            }  # fmt: skip

    return asyncio.run(run())


def bench_module(
    target: str, sizes: tuple[int, ...], threads: int, rounds: int, cache_dir: Path | None
) -> dict[str, Any]:
    """Seconds of a module with and without the best that the cache holds. Raises CompileError, GraphError."""
    module, x = _module(target, sizes)
    torch.set_num_threads(threads)
    service = CompilerService(ArtifactCache(cache_dir or default_root()))
    try:
        with torch.inference_mode():
            subject = engine_subject(module, x, Bucket(sizes[0], sizes[0]), threads)
            known = service.known(subject)
            if known is None:
                raise CompileError(f"nothing proven for {target} is in the cache: `tune` it first")
            kernel = known.load()
            prepared = kernel.prepare(engine_weights(module, subject))
            times: dict[str, list[float]] = {"before": [], "after": []}
            for _ in range(20 * rounds):
                for name, taken in times.items():
                    began_s = time.perf_counter()
                    _ = kernel(x, *prepared) if name == "after" else module(x)
                    taken.append(time.perf_counter() - began_s)
    finally:
        service.close()
    before_s, after_s = (statistics.median(times[name]) for name in ("before", "after"))
    ratio = statistics.median(b / a for b, a in zip(times["before"], times["after"], strict=True))
    recipe = f"{known.recipe.backend} {known.recipe.name}"
    return {
        "module": target,
        "recipe": recipe,
        "before_us": 1e6 * before_s,
        "after_us": 1e6 * after_s,
        "ratio": ratio,
    }


# ---- Details ----


@contextlib.asynccontextmanager
async def _engine(model: str, threads: int) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(EngineSpec(engine="torch", model=model, options={"threads": threads}))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def _evolution(
    engine: TorchEngine, model: str, threads: int, cache_dir: Path | None, *, int8: bool,
    settings: EvolutionSettings | None = None,
) -> ExecutionEvolution:  # fmt: skip
    root = cache_dir or default_root()
    journal = FileJournal(root / "journal.jsonl")
    journal.note("started", model=model, threads=threads, int8=int8)
    decode = DecodeSettings(model, 0, threads, int8=int8)
    return ExecutionEvolution.of(
        engine, decode, cache=ArtifactCache(root), journal=journal, settings=settings or EvolutionSettings()
    )


def _module(target: str, sizes: tuple[int, ...]) -> tuple[nn.Module, torch.Tensor]:
    """The module of `package.module:attribute` (a module, or what makes one), and an input."""
    place, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(place), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{target}: cannot be imported: {error}") from error
    made: Any = found() if not isinstance(found, nn.Module) and callable(found) else found
    if not isinstance(made, nn.Module):
        raise ValueError(  # noqa: TRY004 the user's target, not the caller's type
            f"{target}: a {type(made).__name__}, not a torch.nn.Module"
        )
    x = torch.randn(sizes, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        try:
            _ = made.eval()(x)
        except Exception as error:
            raise ValueError(f"{target}: does not take an input of {sizes}: {error}") from error
    return made, x


def _timed(
    name: str, part: nn.Module, forward: Callable[..., Any], found: dict[str, list[Any]]
) -> Callable[..., Any]:
    weights = weights_of(part)

    def timed(*arguments: Any, **more: Any) -> Any:
        began_s = time.perf_counter()
        y = forward(*arguments, **more)
        line = found[name]
        line[0] += 1
        line[1] += time.perf_counter() - began_s
        x = arguments[0] if arguments else None
        rows = x.numel() // x.shape[-1] if isinstance(x, torch.Tensor) and x.dim() else 1
        line[2] += Cost(weights.flops * rows, weights.bytes_read + bytes_of(x) + bytes_of(y), 0)
        return y

    return timed
