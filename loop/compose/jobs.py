"""Runs in other processes: baselines and finalists, with their progress told back.

The functions here are what the worker processes of an experiment execute. They run trusted baselines in
process; every other policy gets a sandboxed process of its own.
"""

from __future__ import annotations

import multiprocessing as mp
import signal
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.queues import Queue
from queue import Empty

from loop.compose.replay import ReplayConfig, replay
from loop.compose.scoring import FALLBACK
from loop.compose.world import World, WorldSpec, build_world
from loop.contracts import DeploymentOption, PolicySource, RunResult, Window, WindowResult
from loop.logs import configure_logging
from strategy.baselines import list_baselines, load_baseline, tuned_baseline
from strategy.evolve.sandbox import SandboxedPolicy, SandboxLimits
from strategy.evolve.synthesise.constants import find_constants
from strategy.policy import ModulePolicy

Told = tuple[str, int, float, float]
"""(system, windows done, total seconds of virtual time so far, TTFT p99 of the window)."""


@dataclass(frozen=True, slots=True)
class JobSetup:
    """What each worker process of an experiment is given once."""

    spec: WorldSpec
    """The judged world."""
    options: tuple[DeploymentOption, ...]
    config: ReplayConfig
    windows: tuple[Window, ...]


TRUSTED = "baseline"
"""Operator of a PolicySource that is a baseline of this package: it runs in process."""

_world: World | None = None
_setup: JobSetup | None = None
_queue: Queue[Told] | None = None


def start_pool(setup: JobSetup, workers: int) -> tuple[ProcessPoolExecutor, Queue[Told]]:
    """Processes that know the judged world, and the queue on which they tell how far they are."""
    context = mp.get_context("spawn")
    queue: Queue[Told] = context.Queue()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(setup, queue))
    return pool, queue


def _begin(setup: JobSetup, queue: Queue[Told]) -> None:
    global _world, _setup, _queue  # noqa: PLW0603 - the state of a worker process is set once, here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    configure_logging()  # to stderr: a command's stdout is its result
    _setup, _queue = setup, queue
    _world = build_world(setup.spec, setup.options)


def run_policy(system: str, source: PolicySource) -> RunResult:
    """One policy over all windows of the judged world."""
    assert _world is not None and _setup is not None  # noqa: S101, PT018 - set by the initializer
    total = 0.0

    def tell(result: WindowResult) -> None:
        nonlocal total
        total += result.total_s
        if _queue is not None:
            _queue.put((system, result.index, total, result.stats.ttft_s.p99))

    fallback = load_baseline(FALLBACK)
    if source.operator == TRUSTED and source.name in list_baselines():
        return replay(_world, trusted(source), fallback, _setup.windows, _setup.config, on_window=tell)
    with SandboxedPolicy(source, SandboxLimits().patient()) as policy:
        return replay(_world, policy, fallback, _setup.windows, _setup.config, on_window=tell)


def trusted(source: PolicySource) -> ModulePolicy:
    """The baseline of that name, with the constants that the source states; nothing else of it is used."""
    plain = load_baseline(source.name)
    known = {c.name: c.value for c in find_constants(plain.source)}
    stated = {c.name: c.value for c in find_constants(source.source)}
    changed = {name: value for name, value in stated.items() if known.get(name, value) != value}
    return tuned_baseline(source.name, changed) if changed else plain


def drain(queue: Queue[Told]) -> Iterable[Told]:
    """What was told since the last look."""
    with suppress(Empty):
        while True:
            yield queue.get_nowait()
