"""Evolution beside serving: past windows go in, proven policies come out and go live."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog

from loop.contracts import Observation, Policy, PolicySource, RequestRecord, Window, WindowResult
from loop.contracts.live import Counterfactual, LivePort, LiveQuestion, LiveRecord, Stage
from loop.guard import GuardedPolicy, plan_problems
from loop.journal import EvolutionRecord, Journal
from loop.runner.results import EvolutionCost
from strategy.live import Live, LiveConfig

_log = structlog.get_logger(__name__)


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
    proven_after_s: float | None = None
    """Wall seconds after the beginning of the step at which the champion was proven, when it went on after
    that; None: at its end."""


class StepRunner(Protocol):
    """One step of evolution, behind which the evolver and its sandboxes stand."""

    def __call__(
        self, incumbent: PolicySource, past: tuple[PastWindow, ...], stop: threading.Event
    ) -> EvolutionStep:
        """Must return soon after `stop` is set."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What was done beside one or more windows. Times in wall seconds after the beginning."""

    step: EvolutionStep
    proven_s: float
    took_s: float
    question: LiveQuestion | None
    values: Mapping[str, Sequence[float]]
    judged_s: float


_NO_STEP = EvolutionStep(None, "")
_ENDS = (Stage.PROMOTED, Stage.REFUSED)


@dataclass(frozen=True, slots=True)
class _Proposal:
    """A champion of a step, and when it may take over."""

    step: EvolutionStep
    champion: PolicySource
    incumbent: str
    ready_s: float


class BackgroundEvolution:
    """A source of policies for the controller (its PolicySourcePort and KillSwitch).

    At a monitoring point the work that was done beside the last window is collected, and the next begins on
    what is past now: first the question that the live layer asks of simulated worlds, then a step of
    evolution. Answer and champion count only when serving has gone on, on its own clock, for as long as it
    took on ours to come by them: evolution is never free of time. What then becomes of a champion is for
    `live` to say.
    """

    def __init__(
        self,
        first: PolicySource,
        step: StepRunner | None,
        load: Callable[[PolicySource], Policy],
        *,
        journal: Journal | None = None,
        on_step: Callable[[EvolutionRecord], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        last_tick: int | None = None,
        live: LivePort | None = None,
        counterfactual: Counterfactual | None = None,
        objective: Callable[[WindowResult], float] = lambda result: result.total_s,
        waits: bool = True,
        keep_windows: int | None = None,
    ) -> None:
        """`step`: None evolves nothing: operators alone bring policies. `last_tick`: no step begins there, since nothing could come of it; None: the end is not known.
        `live`: None is `Live` with `LiveConfig.immediate()`. `counterfactual`: None asks nothing of simulated
        worlds. `objective`: of a window as it really was, in the unit of the counterfactuals. `waits`: on
        virtual time, which stands still meanwhile, work is waited for; a real system collects it when done.
        `keep_windows`: past windows that are remembered; None: all.
        """
        self._step = step
        self._counterfactual = counterfactual
        self._objective = objective
        self._journal = journal
        self._on_step = on_step
        self._clock = clock
        self._waits = waits
        self._keep_windows = keep_windows
        self._last_tick = last_tick
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="evolution")
        self._stop = threading.Event()
        self._rest = threading.Event()
        self._past: list[PastWindow] = []
        self._running: Future[_Work] | None = None
        self._began_s = 0.0
        self._began_tick = 0
        self._began_with = ""
        self._busy_until_s = 0.0
        self._proposal: _Proposal | None = None
        self._proposed: dict[str, EvolutionStep] = {}
        self._answer: tuple[LiveQuestion, Mapping[str, Sequence[float]], float] | None = None
        self.live = live or Live(
            first, load, LiveConfig.immediate(), guard=GuardedPolicy, check=plan_problems, waits=waits
        )
        self._champion = self.live.champion.digest
        self.now: Observation | None = None
        """What was seen at the last monitoring point."""
        self.records: list[EvolutionRecord] = []
        self.cost = EvolutionCost()

    @property
    def served(self) -> list[PolicySource]:
        """Each policy that served, in order."""
        return list(self.live.served)

    @property
    def incumbent(self) -> PolicySource:
        """The champion: what serves now, a canary aside."""
        return self.live.champion

    @property
    def past(self) -> tuple[PastWindow, ...]:
        """Every window that is over, in order."""
        return tuple(self._past)

    def next_policy(self, obs: Observation) -> Policy | None:
        """Collect the work that was done, let the live layer decide, and begin the next work."""
        self._collect()
        self._hand_on(obs)
        self.now = obs
        policy = self.live.next_policy(obs)
        self._journal_live()
        self._begin(obs)
        return policy

    def urgent_policy(self, obs: Observation) -> Policy | None:
        """The safe baseline, when an operator has pulled the kill switch within the window."""
        policy = self.live.urgent_policy(obs)
        self._journal_live()
        return policy

    def window_ended(self, window: Window, result: WindowResult, obs: Observation) -> None:
        """Remember a window."""
        previous = self._past[-1].obs if self._past else None
        if window.requests or self._waits:  # a real system is idle now and then: nothing to learn from
            self._past.append(PastWindow(window, obs, result, previous))
        if self._keep_windows is not None:
            del self._past[: -self._keep_windows]
        self.live.window_ended(result, self._objective(result))

    def amend(self, window: Window) -> None:
        """More is known of a window that is over: answers were under way when it ended. One that is forgotten
        already is ignored."""
        for number, past in enumerate(self._past):
            if past.window.index == window.index:
                self._past[number] = replace(past, window=window)

    def finished(self, record: RequestRecord) -> None:
        """A record sink: a canary by traffic learns from each request that is over."""
        self.live.finished(record)

    def stop(self) -> None:
        """Ask the step that runs to end soon; no further one begins."""
        self._stop.set()
        self._rest.set()

    def close(self) -> None:
        """Stop the step that runs, wait for it, and end the policies that were loaded."""
        self.stop()
        self._collect(wait=True)
        self._pool.shutdown(wait=True)
        self.live.close()

    # -- the work beside serving ---------------------------------------------------------------------------

    def _begin(self, obs: Observation) -> None:
        if not self.live.evolving:
            self._rest.set()
            return
        idle = self._running is None and obs.now_s >= self._busy_until_s and obs.tick != self._last_tick
        if not (self._past and idle) or self._stop.is_set() or self._step is None:
            return
        if not self._waits and self._past[-1].window.index < obs.tick - 1:
            return  # nothing was asked for in the latest window
        self._rest = threading.Event()
        self._began_s, self._began_tick, self._began_with = obs.now_s, obs.tick, self.incumbent.digest
        question = self.live.question() if self._counterfactual is not None else None
        self._running = self._pool.submit(self._work, self.incumbent, tuple(self._past), question, self._rest)

    def _work(
        self,
        incumbent: PolicySource,
        past: tuple[PastWindow, ...],
        question: LiveQuestion | None,
        rest: threading.Event,
    ) -> _Work:
        began = self._clock()
        values: Mapping[str, Sequence[float]] = {}
        if question is not None and self._counterfactual is not None:
            try:
                values = self._counterfactual(question.policies, question.windows)
            except Exception as error:  # noqa: BLE001 - whatever fails beside serving, serving goes on
                _log.warning(
                    "a question to simulated worlds failed", reason=f"{type(error).__name__}: {error}"
                )
                question = None
        judged_s = self._clock() - began if question is not None else 0.0
        try:
            if question is not None and self.live.disappoints(question, values):
                step = EvolutionStep(None, f"{incumbent.name} disappoints: no step begins from it")
            elif self._step is not None:
                step = self._step(incumbent, past, rest)
            else:
                step = _NO_STEP
        except Exception as error:  # noqa: BLE001
            step = EvolutionStep(None, f"the step failed: {type(error).__name__}: {error}")
        took_s = self._clock() - began
        proven_s = took_s if step.proven_after_s is None else min(took_s, judged_s + step.proven_after_s)
        return _Work(step, proven_s, took_s, question, values, judged_s)

    def _collect(self, *, wait: bool = False) -> None:
        if self._running is None or not (wait or self._waits or self._running.done()):
            return
        work, self._running = self._running.result(), None
        step = work.step
        self.cost = EvolutionCost(
            self.cost.evaluations + step.evaluations,
            self.cost.candidates + step.candidates,
            self.cost.wall_s + work.took_s,
        )
        self._busy_until_s = self._began_s + work.took_s
        if work.question is not None:
            self._answer = (work.question, work.values, self._began_s + work.judged_s)
        if step.champion is None:
            self._record(self._began_tick, self._began_with, None, step.reason, step)
        else:
            ready_s = self._began_s + work.proven_s
            self._proposal = _Proposal(step, step.champion, self._began_with, ready_s)

    def _hand_on(self, obs: Observation) -> None:
        """Give the live layer what has had its time."""
        if self._answer is not None and obs.now_s >= self._answer[2]:
            question, values, _ = self._answer
            self._answer = None
            self.live.judged(question, values)
        proposal = self._proposal
        if proposal is None or obs.now_s < proposal.ready_s:
            return
        self._proposal = None
        step, champion = proposal.step, proposal.champion
        if proposal.incumbent != self.incumbent.digest:
            refusal = f"{champion.name} was proven against another champion"
        else:
            refusal = self.live.propose(champion, step.reason, step.gain)
        if refusal:
            self._record(obs.tick, self.incumbent.digest, None, refusal, step)
        else:
            self._proposed[champion.digest] = step

    # -- the journal ---------------------------------------------------------------------------------------

    def _journal_live(self) -> None:
        """What the live layer did, as records; a change of the champion is a step of evolution too."""
        for record in self.live.take_records():
            if self._journal is not None:
                self._journal.policy(self.live.source(record.policy))
                self._journal.policy(self.live.source(record.champion))
                self._journal.went_live(record)
            self._record_change(record)

    def _record_change(self, record: LiveRecord) -> None:
        before, self._champion = self._champion, record.champion
        step = self._proposed.pop(record.policy, None) if record.after in _ENDS else None
        if record.after is Stage.PROMOTED:
            way = (step.reason, record.reason) if step is not None else (record.reason,)
            reason = "; ".join(dict.fromkeys(way))
            self._record(record.tick, before, record.policy, reason, step or _NO_STEP)
        elif record.after is Stage.ROLLED_BACK:
            self._record(record.tick, record.policy, record.champion, record.reason, _NO_STEP)
        elif record.after is Stage.REFUSED:
            self._record(record.tick, record.champion, None, record.reason, step or _NO_STEP)

    def _record(
        self, tick: int, incumbent: str, champion: str | None, reason: str, step: EvolutionStep
    ) -> None:
        record = EvolutionRecord(
            tick=tick,
            incumbent=incumbent,
            champion=champion,
            reason=reason,
            detail={"deaths": step.deaths, "evaluations": step.evaluations, "gain": step.gain},
        )
        self.records.append(record)
        if self._journal is not None:
            self._journal.evolved(record)
        if self._on_step is not None:
            self._on_step(record)
