"""Evolution beside serving: past windows go in, at the next monitoring point a proven policy comes out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from loop.contracts import Observation, Policy, PolicyFault, PolicySource, Window, WindowResult
from loop.journal import EvolutionRecord, Journal
from loop.runner.results import EvolutionCost


@dataclass(frozen=True, slots=True)
class PastWindow:
    """A window that is over: all that evolution may know of it."""

    window: Window
    obs: Observation
    result: WindowResult
    previous: Observation | None
    """The observation at the window before; None at the first one."""


@dataclass(frozen=True, slots=True)
class EvolutionStep:
    """The outcome of one step."""

    champion: PolicySource | None
    """Proven better than the incumbent; None: nothing was."""
    reason: str
    evaluations: int = 0
    candidates: int = 0
    deaths: dict[str, int] = field(default_factory=dict)
    gain: float = 0.0
    """Predicted share of the objective that the champion saves, on windows that it was not made on."""


class StepRunner(Protocol):
    """One step of evolution, behind which the evolver and its sandboxes stand."""

    def __call__(
        self, incumbent: PolicySource, past: tuple[PastWindow, ...], stop: threading.Event
    ) -> EvolutionStep:
        """Must return soon after `stop` is set."""


class BackgroundEvolution:
    """A source of policies for the controller (its PolicySourcePort).

    At a monitoring point the step that ran while the last window was served is collected, and the next one
    begins on what is past now. A champion takes over only when serving has gone on, on its own clock, for as
    long as the step took on ours: evolution is never free of time. A policy that makes faults while it serves
    is taken back at the next monitoring point, and is not promoted again.
    """

    def __init__(
        self,
        first: PolicySource,
        step: StepRunner,
        load: Callable[[PolicySource], Policy],
        *,
        journal: Journal | None = None,
        on_step: Callable[[EvolutionRecord], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        last_tick: int | None = None,
    ) -> None:
        """`last_tick`: no step begins there, since nothing could come of it; None: the end is not known."""
        self._step = step
        self._load = load
        self._journal = journal
        self._on_step = on_step
        self._clock = clock
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="evolution")
        self._stop = threading.Event()
        self._past: list[PastWindow] = []
        self._running: Future[tuple[EvolutionStep, float]] | None = None
        self._began_s = 0.0
        self._began_tick = 0
        self._busy_until_s = 0.0
        self._last_tick = last_tick
        self._waiting: tuple[PolicySource, EvolutionStep, float] | None = None
        self._banned: set[str] = set()
        self._roll_back = False
        self.served: list[PolicySource] = [first]
        """Each policy that served, in order; the last one serves now."""
        self.records: list[EvolutionRecord] = []
        self.cost = EvolutionCost()

    @property
    def incumbent(self) -> PolicySource:
        """The policy that serves now."""
        return self.served[-1]

    @property
    def past(self) -> tuple[PastWindow, ...]:
        """Every window that is over, in order."""
        return tuple(self._past)

    def next_policy(self, obs: Observation) -> Policy | None:
        """Collect the step that ran, maybe hand over, and start the next one."""
        self._collect()
        policy = self._take_back(obs) or self._hand_over(obs)
        idle = obs.now_s >= self._busy_until_s and obs.tick != self._last_tick
        if self._past and idle and not self._stop.is_set():
            self._began_s, self._began_tick = obs.now_s, obs.tick
            self._running = self._pool.submit(self._timed_step, self.incumbent, tuple(self._past))
        return policy

    def window_ended(self, window: Window, result: WindowResult, obs: Observation) -> None:
        """Remember a window; faults of an evolved policy call for its predecessor."""
        previous = self._past[-1].obs if self._past else None
        self._past.append(PastWindow(window, obs, result, previous))
        if result.faults.total and self.incumbent.digest != self.served[0].digest:
            self._roll_back = True

    def stop(self) -> None:
        """Ask the step that runs to end soon; no further one begins."""
        self._stop.set()

    def close(self) -> None:
        """Stop the step that runs, and wait for it."""
        self.stop()
        self._collect()
        self._pool.shutdown(wait=True)

    def _timed_step(
        self, incumbent: PolicySource, past: tuple[PastWindow, ...]
    ) -> tuple[EvolutionStep, float]:
        began = self._clock()
        try:
            step = self._step(incumbent, past, self._stop)
        except Exception as error:  # noqa: BLE001 - whatever fails in evolution, serving goes on
            step = EvolutionStep(None, f"the step failed: {type(error).__name__}: {error}")
        return step, self._clock() - began

    def _collect(self) -> None:
        if self._running is None:
            return
        step, wall_s = self._running.result()
        self._running = None
        self.cost = EvolutionCost(
            self.cost.evaluations + step.evaluations,
            self.cost.candidates + step.candidates,
            self.cost.wall_s + wall_s,
        )
        self._busy_until_s = self._began_s + wall_s
        champion = step.champion
        if champion is not None and champion.digest not in self._banned:
            self._waiting = (champion, step, self._busy_until_s)
        else:
            self._record(self._began_tick, None, step.reason, step)

    def _hand_over(self, obs: Observation) -> Policy | None:
        if self._waiting is None or obs.now_s < self._waiting[2]:
            return None
        champion, step, _ = self._waiting
        self._waiting = None
        if champion.digest == self.incumbent.digest:
            return None
        return self._serve(obs.tick, champion, step.reason, step)

    def _take_back(self, obs: Observation) -> Policy | None:
        if not self._roll_back:
            return None
        self._roll_back = False
        bad = self.incumbent
        self._banned.add(bad.digest)
        good = next((p for p in reversed(self.served) if p.digest not in self._banned), self.served[0])
        if self._waiting is not None:
            self._record(
                obs.tick, None, f"{self._waiting[0].name} was proven against {bad.name}", self._waiting[1]
            )
            self._waiting = None
        reason = f"{bad.name} ({bad.digest}) made faults while it served: back to {good.name}"
        return self._serve(obs.tick, good, reason, EvolutionStep(good, reason))

    def _serve(self, tick: int, policy: PolicySource, reason: str, step: EvolutionStep) -> Policy | None:
        """Load a policy, and only then let it take over; None: it cannot be loaded."""
        try:
            loaded = self._load(policy)
        except PolicyFault as error:
            self._banned.add(policy.digest)
            self._record(tick, None, f"{policy.name} cannot be loaded: {error}", step)
            return None
        self._record(tick, policy, reason, step)
        self.served.append(policy)
        if self._journal is not None:
            self._journal.policy(policy)
        return loaded

    def _record(self, tick: int, champion: PolicySource | None, reason: str, step: EvolutionStep) -> None:
        record = EvolutionRecord(
            tick=tick,
            incumbent=self.incumbent.digest,
            champion=champion.digest if champion else None,
            reason=reason,
            detail={"deaths": step.deaths, "evaluations": step.evaluations, "gain": step.gain},
        )
        self.records.append(record)
        if self._journal is not None:
            self._journal.evolved(record)
        if self._on_step is not None:
            self._on_step(record)
