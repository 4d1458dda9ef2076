"""Evolution put together: evolver, scoring pool, archive, and the searched rivals on equal budgets."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from loop.compose.scoring import ENTRY, ScoringSetup, TwinEvaluator, score_apart
from loop.contracts import EvaluationTask, Policy, PolicySource, Window
from loop.journal import Journal
from loop.runner.evolution import BackgroundEvolution, EvolutionStep, PastWindow
from strategy.baselines import list_baselines, load_baseline
from strategy.evolve import check_policy
from strategy.evolve.archive import Archive
from strategy.evolve.evolver import Budget, Evolver, EvolverConfig, Stages
from strategy.evolve.sandbox import SandboxedPolicy, SandboxLimits, WorkerPool
from strategy.evolve.synthesise.builtin import BuiltinSynthesiser, random_program
from strategy.evolve.tuning import tune_constants

DEFAULT_EVALUATIONS = 24


@dataclass(frozen=True, slots=True)
class EvolutionConfig:
    """How hard evolution tries at each monitoring point."""

    evaluations: int = DEFAULT_EVALUATIONS
    """Policies scored, each on one stage of the cascade; 0: no evolution."""
    step_deadline_s: float = 60.0
    """Wall time of one step."""
    recent_windows: int = 2
    """Past windows in the full stage."""
    watched_windows: int = 3
    """A promoted policy is compared with its predecessors on so many of the windows that it has served."""
    regret: float = 0.02
    """It is taken back when a predecessor would have saved more than this share."""
    margin: float = 0.015
    """What a candidate must win by over all stages of its proof."""
    agreement: float = 0.02
    """A finalist scored apart from the twin may differ by this share from its score beside the twin."""


class Evolution:
    """Everything that evolves policies in one experiment. A context manager: workers end with it."""

    def __init__(
        self,
        setup: ScoringSetup,
        first: PolicySource,
        config: EvolutionConfig,
        *,
        seed: int,
        workers: int,
        archive: Path | None,
    ) -> None:
        self._setup = setup
        self._first = first
        self._config = config
        self._seed = seed
        self._pool = WorkerPool(workers, ENTRY, pickle.dumps(setup))
        self._archive = Archive(archive)
        self._evaluator = TwinEvaluator(self._pool)
        self._evolver = Evolver(
            BuiltinSynthesiser(seed=seed),
            self._evaluator,
            self._archive,
            EvolverConfig(batch=2 * workers, smoke_slack=1.02, margin=config.margin),
        )
        self._baselines = portable_baselines()
        """Parents at every step: what was beaten under yesterday's load may be the best under today's."""
        self._policies: list[SandboxedPolicy] = []
        self._background: BackgroundEvolution | None = None
        self._searched: EvaluationTask | None = None
        self.status = ""
        """What is going on, in a few words."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()
        self._pool.close()
        for policy in self._policies:
            policy.close()
        self._archive.close()

    @property
    def background(self) -> BackgroundEvolution:
        """The source of policies of the judged run."""
        if self._background is None:
            raise RuntimeError("evolution has not begun")
        return self._background

    @property
    def served(self) -> tuple[PolicySource, ...]:
        """Policies that served, in order."""
        return tuple(self.background.served)

    @property
    def past(self) -> tuple[PastWindow, ...]:
        """All windows of the judged run that are over."""
        return self.background.past

    @property
    def simulated_windows(self) -> int:
        """Simulated so far, in all evaluations: what the searched rivals may spend, each."""
        return self._evaluator.windows

    def begin(self, journal: Journal | None, last_tick: int | None = None) -> BackgroundEvolution:
        """A source of policies for one judged run."""
        if journal is not None:
            journal.policy(self._first)
        self._background = BackgroundEvolution(
            self._first, self._step, self._load, journal=journal, last_tick=last_tick
        )
        return self._background

    def finish(self) -> None:
        """Stop the step that runs, if one does."""
        if self._background is not None:
            self._background.close()

    def _load(self, source: PolicySource) -> Policy:
        """A policy that is to serve: in a locked process of its own."""
        for retired in self._policies[:-1]:
            retired.close()  # the last one still serves until this one has taken over
        del self._policies[:-1]
        policy = SandboxedPolicy(source, SandboxLimits().patient())
        self._policies.append(policy)
        return policy

    def _step(
        self, incumbent: PolicySource, past: tuple[PastWindow, ...], stop: threading.Event
    ) -> EvolutionStep:
        """One step on what is past; a champion counts only when it scores the same apart from the twin."""
        if self._config.evaluations == 0 or stop.is_set():
            return EvolutionStep(None, "no evolution asked for")
        tick = past[-1].window.index + 1
        self.status = f"window {tick} served; evolving on windows 0 to {tick - 1}"
        self._evaluator.learn(past)
        evaluations = self._evaluator.evaluations
        better = self._disappointment(incumbent, past)
        if better is not None:
            spent = self._evaluator.evaluations - evaluations
            return EvolutionStep(better[0], better[1], evaluations=spent, gain=better[2])
        stages = stages_for(past, self._config.recent_windows, len(self._setup.worlds))
        outcome = self._evolver.step(
            incumbent,
            self._parents(incumbent, past),
            past[-1].obs,
            stages,
            Budget(self._config.evaluations, time.monotonic() + self._config.step_deadline_s),
            stop=stop.is_set,
        )
        self._searched = stages.full
        champion, reason = outcome.best, outcome.reason
        if champion is not None and not stop.is_set():
            doubt = self._doubt(champion, past)
            if doubt:
                champion, reason = None, doubt
        return EvolutionStep(
            champion,
            reason,
            evaluations=self._evaluator.evaluations - evaluations,
            candidates=outcome.candidates,
            deaths={str(death): n for death, n in outcome.deaths.items()},
            gain=1.0 - outcome.ratio,
        )

    def _parents(self, incumbent: PolicySource, past: Sequence[PastWindow]) -> tuple[PolicySource, ...]:
        """Baselines that are worth scoring again: all of them when the demand has changed, else those that
        were near the incumbent in the last step without doing the same.
        """
        theirs = self._evaluator.objectives
        searched = self._searched
        base = theirs.get((incumbent.digest, searched)) if searched else None
        if searched is None or not base or len(past) < 2 or not same_regime(past[-1].window, past[-2].window):
            return self._baselines
        ratios = {p.digest: theirs.get((p.digest, searched), 0.0) / base for p in self._baselines}
        return tuple(p for p in self._baselines if ratios[p.digest] < 1.2 and ratios[p.digest] != 1.0)

    def _disappointment(
        self, incumbent: PolicySource, past: Sequence[PastWindow]
    ) -> tuple[PolicySource, str, float] | None:
        """A policy that served before and would have done better on the windows that the incumbent has served
        since, two at least; None: the incumbent keeps its promise.
        """
        since = [p.window.index for p in past if p.result.policy == incumbent.digest]
        before = {p.digest: p for p in (self.served[0], *self.served[-3:-1]) if p.digest != incumbent.digest}
        if len(since) < 2 or not before:
            return None
        tasks = [
            EvaluationTask(tuple(since[-self._config.watched_windows :]), world)
            for world in range(len(self._setup.worlds))
        ]
        policies = [incumbent, *before.values()]
        totals = dict.fromkeys((p.digest for p in policies), 0.0)
        jobs = [(policy, task) for policy in policies for task in tasks]
        for index, evaluation in self._evaluator.evaluate(jobs):
            value = evaluation.score.objective if evaluation.score is not None else float("inf")
            totals[jobs[index][0].digest] += value
        best = min(policies, key=lambda p: totals[p.digest])
        if best is incumbent or totals[best.digest] >= totals[incumbent.digest] * (1.0 - self._config.regret):
            return None
        gain = 1.0 - totals[best.digest] / totals[incumbent.digest]
        return best, f"{incumbent.name} disappoints: {best.name} would have saved {gain:.1%} since", gain

    def _doubt(self, champion: PolicySource, past: Sequence[PastWindow]) -> str:
        """Why a champion's score cannot be believed; empty: it can."""
        task = EvaluationTask((past[-1].window.index,))
        claimed = next(e for _, e in self._evaluator.evaluate([(champion, task)]))
        with SandboxedPolicy(champion, SandboxLimits().patient()) as policy:
            apart = score_apart(self._setup, policy, past[-1:])
        if claimed.score is None or apart.score is None:
            return f"{champion.name} fails outside the scoring worker: {apart.detail or claimed.detail}"
        off = abs(apart.score.objective / max(1e-9, claimed.score.objective) - 1.0)
        if off > self._config.agreement:
            return f"{champion.name} scores {off:.1%} differently when it cannot touch the twin: refused"
        return ""

    def tuned_static(self, share: int, budget: int) -> PolicySource:
        """The best fixed parameters of the first policy on the first `share` windows; `budget` is in simulated
        windows."""
        past = self._learn_first(share)
        evaluations = max(1, budget // len(past))
        tasks = (EvaluationTask(tuple(p.window.index for p in past)),)
        found = tune_constants(self._first, self._evaluator, tasks, evaluations, self._seed)
        return replace(found, note=f"constants of {self._first.name} tuned on the first {share} windows")

    def best_of_random(self, share: int, budget: int) -> PolicySource:
        """The best of random programs on the first `share` windows; `budget` is in simulated windows."""
        past = self._learn_first(share)
        evaluations = max(1, budget // len(past))
        task = EvaluationTask(tuple(p.window.index for p in past))
        programs = [random_program(self._seed * 100_003 + i) for i in range(evaluations)]
        best, value = programs[0], float("inf")
        answers = self._evaluator.evaluate([(p, task) for p in programs])
        for done, (index, evaluation) in enumerate(answers, 1):
            self.status = f"{done} of {len(programs)} random programs"
            if evaluation.score is not None and evaluation.score.objective < value:
                best, value = programs[index], evaluation.score.objective
        return replace(best, note=f"best of {len(programs)} random programs on the first {share} windows")

    def _learn_first(self, share: int) -> tuple[PastWindow, ...]:
        past = self.past[:share]
        self._evaluator.learn(past)
        return past


def stages_for(past: Sequence[PastWindow], recent: int, worlds: int) -> Stages:
    """The cascade's windows, all of a demand like the latest's, since a score on yesterday's load is no score:
    the latest for smoke, the latest `recent` for the full stage, the one before these held out; and the proof
    in perturbed worlds, where hardware differs and requests are drawn anew.
    """
    alike = [p.window.index for p in past if same_regime(p.window, past[-1].window)]
    searched = tuple(alike[-recent:])
    held_out = alike[-1 - recent : -recent]
    return Stages(
        smoke=EvaluationTask(searched[-1:]),
        full=EvaluationTask(searched),
        held_out=EvaluationTask(tuple(held_out)) if held_out else None,
        perturbed=tuple(EvaluationTask(searched, world) for world in range(1, worlds)),
    )


def same_regime(a: Window, b: Window) -> bool:
    """Whether two windows ask for about the same: requests, prompt and answer lengths within a factor of 2."""
    return all(
        x == y or (min(x, y) > 0 and max(x, y) <= 2.0 * min(x, y))
        for x, y in zip(_demand(a), _demand(b), strict=True)
    )


def _demand(window: Window) -> tuple[float, float, float]:
    n = len(window.requests)
    tokens = sum(r.input_tokens for r in window.requests), sum(r.output_tokens for r in window.requests)
    return float(n), tokens[0] / max(1, n), tokens[1] / max(1, n)


def portable_baselines() -> tuple[PolicySource, ...]:
    """Baselines that keep the rules of evolved policies, and so can be parents."""
    sources = (load_baseline(name).as_source() for name in list_baselines())
    return tuple(s for s in sources if not check_policy(s.source))
