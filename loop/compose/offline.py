"""Policies off line: on the windows of a recorded or generated workload, side by side, in several worlds.

World 0 is the nominal one. Each perturbed world has other hardware, and requests drawn anew from the window's
own. A policy that is no baseline of this package runs in a sandboxed process of its own, apart from the twin:
it cannot touch what it is measured by.
"""

from __future__ import annotations

import multiprocessing as mp
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from execution.twin import WorldParameters
from hw_profiles.performance import Perturbation
from loop.compose.jobs import TRUSTED
from loop.compose.objective import Objective
from loop.compose.replay import ReplayConfig, replay
from loop.compose.scoring import FALLBACK, ScoringSetup, Segment, redraw
from loop.compose.world import World, WorldSpec, build_world
from loop.contracts import (
    DeploymentOption,
    Observation,
    Policy,
    PolicySource,
    RunResult,
    Window,
    WindowResult,
)
from loop.logs import configure_logging
from loop.runner.evolution import PastWindow
from strategy.baselines import list_baselines, load_baseline
from strategy.evolve.sandbox import SandboxedPolicy, SandboxLimits

SPREAD = 0.15
"""Of the hardware multipliers of a perturbed world."""
HIDDEN_SPREAD = 0.2
"""The same of a hidden one: evolution's model of the world is never the world it is judged in."""


@dataclass(frozen=True, slots=True)
class OfflineSetup:
    """A workload cut into windows, and the worlds to replay it in."""

    worlds: tuple[WorldSpec, ...]
    """World 0 is the nominal one; the others are perturbed."""
    options: tuple[DeploymentOption, ...]
    config: ReplayConfig
    objective: Objective
    windows: tuple[Window, ...]

    @property
    def scoring(self) -> ScoringSetup:
        """What scoring workers need of it."""
        return ScoringSetup(self.worlds, self.options, self.config, self.objective)

    def hidden(self, seed: int, count: int) -> OfflineSetup:
        """The nominal world and `count` others, which no search has seen."""
        nominal = self.worlds[0]
        worlds = tuple(_hidden_world(nominal, 7_919 * (seed + 1) + k) for k in range(count))
        return replace(self, worlds=(nominal, *worlds))


def offline_setup(
    nominal: WorldSpec,
    windows: tuple[Window, ...],
    config: ReplayConfig,
    objective: Objective,
    *,
    perturbed: int,
) -> OfflineSetup:
    """The setup with `perturbed` worlds beside the nominal one.

    Raises:
        ProfileError, InfeasibleModelError: as `build_world`.
    """
    options = build_world(nominal).options
    worlds = [nominal] + [
        replace(nominal, perturbation=Perturbation(seed=1_000 + k, spread=SPREAD), seed=k)
        for k in range(1, perturbed + 1)
    ]
    return OfflineSetup(tuple(worlds), options, config, objective, windows)


def _hidden_world(nominal: WorldSpec, seed: int) -> WorldSpec:
    return replace(
        nominal,
        perturbation=Perturbation(seed=seed, spread=HIDDEN_SPREAD),
        parameters=WorldParameters(start_scale=1.15, link_scale=0.9, jitter=0.03),
        seed=seed,
    )


@dataclass(frozen=True, slots=True)
class Run:
    """One policy in one world."""

    policy: PolicySource
    world: int = 0
    segment: Segment | None = None
    """Consecutive windows, and what was seen when they began; None: all windows, from nothing."""


class SideBySide:
    """Processes that replay policies in the worlds of a setup. A context manager: left by an exception (an
    interrupt too), it ends what runs at once.
    """

    def __init__(self, setup: OfflineSetup, workers: int) -> None:
        self._others = {child.pid for child in mp.active_children()}
        self._pool = ProcessPoolExecutor(
            workers, mp_context=mp.get_context("spawn"), initializer=_begin, initargs=(setup,)
        )

    def run(self, runs: Sequence[Run]) -> Iterator[tuple[int, RunResult]]:
        """Yield (index of the run, its result) as they are done.

        Raises:
            BrokenProcessPool: a process died, e.g. for want of memory.
        """
        with _deaf_children():
            futures = {self._pool.submit(_replay, job): i for i, job in enumerate(runs)}
        for future in as_completed(futures):
            yield futures[future], future.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for child in mp.active_children():
                if child.pid not in self._others:
                    child.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that start meanwhile ignore Ctrl-C from their first moment: it is the parent's to handle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_setup: OfflineSetup | None = None
_worlds: dict[int, World] = {}


def _begin(setup: OfflineSetup) -> None:
    global _setup  # noqa: PLW0603 - the state of a worker process is set once, here
    configure_logging()  # to stderr: a command's stdout is its result
    _setup = setup


def _replay(run: Run) -> RunResult:
    """One run, in a worker process."""
    assert _setup is not None  # noqa: S101 - set by the initializer
    if run.world not in _worlds:
        _worlds[run.world] = build_world(_setup.worlds[run.world], _setup.options)
    windows = run.segment.windows if run.segment is not None else _setup.windows
    if run.world:
        windows = tuple(redraw(window, run.world) for window in windows)
    start = run.segment.start if run.segment is not None else None
    with open_policy(run.policy) as policy:
        return replay(
            _worlds[run.world], policy, load_baseline(FALLBACK), windows, _setup.config, start=start
        )


@contextmanager
def open_policy(source: PolicySource) -> Iterator[Policy]:
    """The policy, ready to decide: a baseline of this package in process, all else in a sandbox."""
    if is_trusted(source):
        yield load_baseline(source.name)
        return
    with SandboxedPolicy(source, SandboxLimits().patient()) as policy:
        yield policy


def is_trusted(source: PolicySource) -> bool:
    """Whether the policy is, to the letter, a baseline of this package."""
    if source.operator != TRUSTED or source.name not in list_baselines():
        return False
    return load_baseline(source.name).digest == source.digest


class _Recorder:
    """Remembers each window as evolution is to see it. A PolicySourcePort that never offers a policy."""

    def __init__(self) -> None:
        self.past: list[PastWindow] = []

    def next_policy(self, obs: Observation) -> Policy | None:  # noqa: ARG002 - the port's signature
        return None

    def window_ended(self, window: Window, result: WindowResult, obs: Observation) -> None:
        previous = self.past[-1].obs if self.past else None
        self.past.append(PastWindow(window, obs, result, previous))


def observe_past(setup: OfflineSetup, source: PolicySource) -> tuple[PastWindow, ...]:
    """Serve all windows in the nominal world by this policy: what was seen and came of it is the past."""
    world = build_world(setup.worlds[0], setup.options)
    recorder = _Recorder()
    with open_policy(source) as policy:
        replay(world, policy, load_baseline(FALLBACK), setup.windows, setup.config, source=recorder)
    return tuple(recorder.past)
