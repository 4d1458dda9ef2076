"""Evolution put together: evolver, scoring pool, archive, and the searched rivals on equal budgets."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import log2
from pathlib import Path
from types import TracebackType
from typing import Self

from loop.compose.jobs import TRUSTED, trusted
from loop.compose.objective import window_value
from loop.compose.scoring import ENTRY, ScoringSetup, TwinEvaluator, score_apart
from loop.contracts import EvaluationTask, Observation, Policy, PolicySource
from loop.guard import GuardedPolicy, plan_problems
from loop.journal import Journal
from loop.runner.evolution import BackgroundEvolution, EvolutionStep, PastWindow
from strategy.baselines import list_baselines, load_baseline
from strategy.evolve import check_policy
from strategy.evolve.archive import Archive
from strategy.evolve.evolver import Budget, Evolver, EvolverConfig, Stages
from strategy.evolve.sandbox import SandboxedPolicy, SandboxLimits, WorkerPool
from strategy.evolve.synthesise.builtin import BuiltinSynthesiser, random_program
from strategy.evolve.synthesise.recipes import recipes
from strategy.evolve.tuning import tune_constants
from strategy.live import Live, LiveConfig, LiveStore

DEFAULT_EVALUATIONS = 12
LEAST_WINDOWS = 3
"""Past windows without which nothing is promoted: one, however often it is replayed, does not tell what changes."""
WATCHED_IN_A_ROW = 4
"""Windows from a take-over on in which a policy is compared with its predecessors."""
WINDOW_NOISE = 0.06
"""Standard deviation of the log ratio of two near-equal policies' windows, the next against the predicted one, seen
in batch replays."""
SLACK = 0.005
"""What a candidate may lose in one stage of its proof while it wins the whole."""


@dataclass(frozen=True, slots=True)
class EvolutionConfig:
    """How hard evolution tries at each monitoring point."""

    evaluations: int = DEFAULT_EVALUATIONS
    """Policies scored, each on one stage of the cascade, in one step; 0: no evolution."""
    first_evaluations: int | None = None
    """The same where the load is of another kind than before; None: as always."""
    step_deadline_s: float = 60.0
    """Wall time of one step."""
    recent_windows: int = 1
    """Past windows in the full stage; one alone is served twice."""
    worlds: int = 1
    """Perturbed worlds in the proof."""
    rehearse: bool = True
    """Candidates are also scored on what has not happened yet (see loop.compose.rehearsal)."""
    margin: float = 0.01
    """What a candidate must win by over all stages of its proof."""
    agreement: float = 0.02
    """A finalist scored apart from the twin may differ by this share from its score beside the twin."""
    live: LiveConfig = field(default_factory=LiveConfig.immediate)
    """How a proven policy comes to serve."""

    @classmethod
    def frugal(cls) -> EvolutionConfig:
        """For where simulated windows are dear: half of the evaluations where the load has not changed its kind,
        and a larger margin, since so few cannot tell a small gain from luck (promotions with 2 to 4 % predicted
        saved nothing in the windows that followed, those with 6 % and more did)."""
        return cls(evaluations=6, first_evaluations=12, margin=0.05)


class Evolution:
    """Everything that evolves policies in one experiment. A context manager: workers end with it."""

    def __init__(
        self,
        setup: ScoringSetup,
        first: PolicySource,
        config: EvolutionConfig,
        *,
        baselines: tuple[PolicySource, ...],
        seed: int,
        workers: int,
        archive: Path | None,
        store: Path | None = None,
    ) -> None:
        """`baselines`: what else is known by name; they stand among the parents where the load changes. `store`:
        where operators of other processes reach the judged run; None: nobody does.
        """
        self._setup = setup
        self._first = first
        self._config = config
        self._seed = seed
        self._pool = WorkerPool(workers, ENTRY, pickle.dumps(setup))
        self._archive = Archive(archive)
        self._store = LiveStore.begin(store) if store is not None else None
        self._evaluator = TwinEvaluator(self._pool, setup, first)
        self._evolver = Evolver(
            BuiltinSynthesiser(seed=seed),
            self._evaluator,
            self._archive,
            EvolverConfig(
                batch=2 * workers,
                smoke_slack=1.02,
                margin=config.margin,
                noise=WINDOW_NOISE,
                confidence=2.0,
                slack=SLACK,
                rescore_share=0.5,
            ),
        )
        self._baselines = baselines
        self._guests = (*recipes(first), *baselines)
        """Parents wherever the load changes: what was beaten under yesterday's may be the best under today's."""
        self._background: BackgroundEvolution | None = None
        self._sandboxed: SandboxedPolicy | None = None
        """The first policy, where it is no baseline."""
        self._seen: list[str] = []
        """Regimes of the steps so far."""
        self.status = ""
        """What is going on, in a few words."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()
        self._pool.close()
        if self._sandboxed is not None:
            self._sandboxed.close()
        self._archive.close()
        if self._store is not None and kind is None:
            self._store.close()  # after an interrupt, the serving thread may still be writing its last window

    def first_policy(self) -> Policy:
        """What serves before anything was promoted: a baseline in process, any other in a sandbox."""
        if self._first.operator == TRUSTED:
            return trusted(self._first)
        if self._sandboxed is None:
            self._sandboxed = sandboxed(self._first)
        return self._sandboxed

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
    def now(self) -> Observation | None:
        """The state of the run that is evolved for, where one goes on; scoring begins from it."""
        return self.background.now

    @property
    def simulated_requests(self) -> int:
        """Simulated so far, in all evaluations: what the searched rivals may spend, each."""
        return self._evaluator.requests

    @property
    def cpu_s(self) -> float:
        """CPU seconds that all evaluations took so far."""
        return self._evaluator.cpu_s

    def begin(self, journal: Journal | None, last_tick: int | None = None) -> BackgroundEvolution:
        """A source of policies for one judged run."""
        if journal is not None:
            journal.policy(self._first)
        live = Live(
            self._first,
            sandboxed,
            self._config.live,
            guard=GuardedPolicy,
            check=plan_problems,
            trusted={self._first.digest: self.first_policy()},
            store=self._store,
        )
        self._background = BackgroundEvolution(
            self._first,
            self.step,
            sandboxed,
            journal=journal,
            last_tick=last_tick,
            live=live,
            counterfactual=self.counterfactual,
            objective=lambda result: window_value(result, self._setup.objective),
        )
        return self._background

    def finish(self) -> None:
        """Stop the step that runs, if one does."""
        if self._background is not None:
            self._background.close()

    def step(
        self, incumbent: PolicySource, past: tuple[PastWindow, ...], stop: threading.Event
    ) -> EvolutionStep:
        """One step on what is past; a champion counts only when it scores the same apart from the twin."""
        config = self._config
        if config.evaluations == 0 or stop.is_set():
            return EvolutionStep(None, "no evolution asked for")
        tick = past[-1].window.index + 1
        self.status = f"window {tick - 1} served; evolving on the windows up to it"
        self._evaluator.learn(past, self.now)
        self._evolver.forget_scores()  # they were made from what was seen then
        before = self._evaluator.evaluations
        regime = regime_of(past[-1])
        is_new = not self._seen or regime != self._seen[-1]
        self._seen.append(regime)
        budget = (config.first_evaluations or config.evaluations) if is_new else config.evaluations
        outcome = self._evolver.step(
            incumbent,
            self._guests if is_new else (),
            past[-1].obs,
            stages_for(past, config.recent_windows, self._setup, rehearse=config.rehearse and is_new),
            Budget(budget, time.monotonic() + config.step_deadline_s),
            stop=stop.is_set,
            regime=regime,
        )
        champion, reason = outcome.best, outcome.reason
        if champion is not None and not stop.is_set():
            doubt = self._doubt(champion, EvaluationTask((past[-1].window.index,))) or self._hindsight(
                champion, incumbent, past
            )
            if doubt:
                self._evolver.refuse(champion, doubt)
                champion, reason = None, doubt
        return EvolutionStep(
            champion,
            reason,
            evaluations=self._evaluator.evaluations - before,
            candidates=outcome.candidates,
            deaths={str(death): n for death, n in outcome.deaths.items()},
            gain=1.0 - outcome.ratio,
        )

    def counterfactual(
        self, policies: Sequence[PolicySource], windows: Sequence[int]
    ) -> dict[str, Sequence[float]]:
        """Objectives of policies in past windows of the nominal world, served in a row from where the first
        policy took over: else the others would begin with the layout that it has paid for. Where that is long
        ago, nothing can be said.
        """
        by_index = {p.window.index: p for p in self.past}
        first = min(windows)
        while first - 1 in by_index and by_index[first - 1].result.policy == policies[0].digest:
            first -= 1
        row = tuple(range(first, max(windows) + 1))
        if len(row) > WATCHED_IN_A_ROW:
            return {}
        self._evaluator.learn(self.past)
        found: dict[str, Sequence[float]] = {}
        for number, evaluation in self._evaluator.evaluate([(p, EvaluationTask(row)) for p in policies]):
            score = evaluation.score
            told = dict(zip(row, score.per_window, strict=True)) if score is not None else {}
            found[policies[number].digest] = [told.get(index, float("inf")) for index in windows]
        return found

    def _doubt(self, champion: PolicySource, task: EvaluationTask) -> str:
        """Why a champion's score cannot be believed; empty: it can."""
        if (champion.digest, task) not in self._evaluator.objectives:
            list(self._evaluator.evaluate([(champion, task)]))
        claimed = self._evaluator.objectives.get((champion.digest, task))
        with SandboxedPolicy(champion, SandboxLimits().patient()) as policy:
            apart = score_apart(self._setup, policy, self._evaluator.segments(task.windows))
        if claimed is None or apart.score is None:
            return f"{champion.name} fails outside the scoring worker: {apart.detail or 'it has no score'}"
        off = abs(apart.score.objective / max(1e-9, claimed) - 1.0)
        if off > self._config.agreement:
            return f"{champion.name} scores {off:.1%} differently when it cannot touch the twin: refused"
        return ""

    def _hindsight(
        self, champion: PolicySource, incumbent: PolicySource, past: tuple[PastWindow, ...]
    ) -> str:
        """Why a champion would not have paid in the latest windows as they really came, one after the other, with
        all that happened in them; empty: it would have. (A proof on one window, repeated, says little where each
        differs from the one before.)"""
        if len(past) < LEAST_WINDOWS:
            return (
                f"{champion.name} must wait: {len(past)} windows are too few to see what changes between them"
            )
        row = EvaluationTask(tuple(p.window.index for p in past[-WATCHED_IN_A_ROW:]))
        self._evaluator.learn(past)
        found: dict[int, float] = {}
        for number, evaluation in self._evaluator.evaluate([(champion, row), (incumbent, row)]):
            if evaluation.score is not None:
                found[number] = evaluation.score.objective
        if len(found) < 2:
            return f"{champion.name} has no score on the windows as they came"
        if found[0] <= found[1]:
            return ""
        return (
            f"{champion.name} would not have paid in the windows as they came: {found[0]:.4g}, the incumbent "
            f"{found[1]:.4g}"
        )

    def tuned_static(self, share: int, budget: int) -> PolicySource:
        """The best fixed policy with hindsight of the first `share` windows: the best of the first policy and all
        baselines there, its constants then tuned on them; `budget` is in simulated requests."""
        past = self._learn_first(share)
        task = EvaluationTask(tuple(p.window.index for p in past))
        evaluations = max(1, budget // max(1, sum(len(p.window.requests) for p in past)))
        known = (self._first, *self._baselines)[:evaluations]
        best = self._best(known, task, "policies known by name")
        found = tune_constants(best, self._evaluator, (task,), evaluations - len(known), self._seed)
        return replace(found, note=f"{best.name}, tuned on the first {share} windows")

    def best_of_random(self, share: int, budget: int) -> PolicySource:
        """The best of random programs on the first `share` windows; `budget` is in simulated requests."""
        past = self._learn_first(share)
        evaluations = max(1, budget // max(1, sum(len(p.window.requests) for p in past)))
        task = EvaluationTask(tuple(p.window.index for p in past))
        programs = [random_program(self._seed * 100_003 + i) for i in range(evaluations)]
        best = self._best(programs, task, "random programs")
        return replace(best, note=f"best of {len(programs)} random programs on the first {share} windows")

    def _best(self, policies: Sequence[PolicySource], task: EvaluationTask, what: str) -> PolicySource:
        """The one of the least objective; the first where none has any."""
        best, value = policies[0], float("inf")
        answers = self._evaluator.evaluate([(p, task) for p in policies])
        for done, (index, evaluation) in enumerate(answers, 1):
            self.status = f"{done} of {len(policies)} {what}"
            if evaluation.score is not None and evaluation.score.objective < value:
                best, value = policies[index], evaluation.score.objective
        return best

    def _learn_first(self, share: int) -> tuple[PastWindow, ...]:
        past = self.past[:share]
        self._evaluator.learn(past)
        return past


def sandboxed(source: PolicySource) -> SandboxedPolicy:
    """A policy that is to serve a replay: in a locked process of its own, patient with a busy machine."""
    return SandboxedPolicy(source, SandboxLimits().patient())


def stages_for(
    past: Sequence[PastWindow], recent: int, setup: ScoringSetup, *, rehearse: bool = True
) -> Stages:
    """The cascade's windows, all of the latest's regime, since a score on yesterday's load is no score: the
    latest for smoke, the latest `recent` (and rehearsals of the last one) for the full stage, the one before
    these held out; and the proof in perturbed worlds, where hardware differs and requests are drawn anew, and in
    all rehearsals: who is as good on the past but would stand there helpless must not take over.
    """
    regime = regime_of(past[-1])
    alike = [p.window.index for p in past if regime_of(p) == regime]
    searched = tuple(alike[-recent:])
    held_out = alike[-1 - recent : -recent]
    return Stages(
        smoke=EvaluationTask(searched[-1:]),
        full=EvaluationTask(searched, setup.rehearsing if rehearse and setup.rehearsals else 0),
        held_out=EvaluationTask(tuple(held_out)) if held_out else None,
        perturbed=tuple(EvaluationTask(searched, world) for world in setup.perturbed),
        rehearsed=EvaluationTask(searched[-1:], setup.rehearsing_all) if setup.rehearsals else None,
    )


def regime_of(past: PastWindow) -> str:
    """The kind of load in words: per model requests, prompt and answer lengths in half powers of two; devices."""
    words = []
    for model in sorted({r.model for r in past.window.requests}):
        mine = [r for r in past.window.requests if r.model == model]
        tokens = sum(r.input_tokens for r in mine) / len(mine), sum(r.output_tokens for r in mine) / len(mine)
        steps = (round(2.0 * log2(max(1.0, x))) for x in (len(mine), *tokens))
        words.append(model + " " + "/".join(f"{2.0 ** (step / 2):.0f}" for step in steps))
    up = sum(d.available for d in past.obs.devices)
    slow = sum(d.available and d.speed < 0.9 for d in past.obs.devices)
    return "; ".join((*words, f"{up} devices, {slow} slow"))


def portable_baselines() -> tuple[PolicySource, ...]:
    """Baselines that keep the rules of evolved policies, and so can be parents."""
    sources = (load_baseline(name).as_source() for name in list_baselines())
    return tuple(s for s in sources if not check_policy(s.source))
