"""Runs in other processes: baselines, finalists and the oracle's windows, with their progress told back.

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
from typing import Any

from loop.compose.objective import Objective, window_value
from loop.compose.replay import ReplayConfig, Start, replay
from loop.compose.scoring import FALLBACK
from loop.compose.world import World, WorldSpec, build_world
from loop.contracts import DeploymentOption, Policy, PolicySource, RunResult, Window, WindowResult
from strategy.baselines import list_baselines, load_baseline
from strategy.evolve.sandbox import SandboxedPolicy

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
    objective: Objective


_world: World | None = None
_setup: JobSetup | None = None
_queue: Queue[Told] | None = None
_loaded: dict[str, Policy] = {}


def start_pool(setup: JobSetup, workers: int) -> tuple[ProcessPoolExecutor, Queue[Told]]:
    """Processes that know the judged world, and the queue on which they tell how far they are."""
    context = mp.get_context("spawn")
    queue: Queue[Told] = context.Queue()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(setup, queue))
    return pool, queue


def _begin(setup: JobSetup, queue: Queue[Told]) -> None:
    global _world, _setup, _queue  # noqa: PLW0603 - the state of a worker process is set once, here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
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

    policy = _policy(source)
    try:
        return replay(_world, policy, load_baseline(FALLBACK), _setup.windows, _setup.config, on_window=tell)
    finally:
        _unload(source)


def best_of(candidates: tuple[PolicySource, ...], index: int, start: Start | None) -> OracleStep:
    """Serve one window by each candidate from the same state of the judged world; keep the best."""
    assert _world is not None and _setup is not None  # noqa: S101, PT018
    window = next(w for w in _setup.windows if w.index == index)
    best: OracleStep | None = None
    for source in candidates:
        run = replay(_world, _policy(source), load_baseline(FALLBACK), (window,), _setup.config, start=start)
        value = window_value(run.windows[0], _setup.objective)
        if best is None or value < best.value:
            best = OracleStep(source.name, value, run)
    if best is None:
        raise ValueError("the oracle has no candidates to choose from")
    return best


@dataclass(frozen=True, slots=True)
class OracleStep:
    """The best candidate on one window, known in hindsight."""

    policy: str
    value: float
    run: RunResult


def drain(queue: Queue[Told]) -> Iterable[Told]:
    """What was told since the last look."""
    with suppress(Empty):
        while True:
            yield queue.get_nowait()


def _policy(source: PolicySource) -> Policy:
    if source.operator == "baseline" and source.name in list_baselines():
        return load_baseline(source.name)
    if source.digest not in _loaded:
        _loaded[source.digest] = SandboxedPolicy(source)
    return _loaded[source.digest]


def _unload(source: PolicySource) -> None:
    policy: Any = _loaded.pop(source.digest, None)
    if policy is not None:
        policy.close()
