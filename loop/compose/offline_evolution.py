"""Evolution off line: the windows of a workload are served once, and are the past; then steps of the evolver
until a budget is spent.

Candidates are made on some windows (train), proven on others (validation, the cascade's held-out stage) and in
perturbed worlds; the last ones (held out) no search ever sees.
"""

from __future__ import annotations

import math
import pickle
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from loop.compose.evolving import portable_baselines
from loop.compose.offline import OfflineSetup
from loop.compose.offline_watch import Known, WatchedArchive, WatchedEvaluator
from loop.compose.scoring import ENTRY, TwinEvaluator, past_segments, score_apart
from loop.contracts import EvaluationTask, PolicySource, Synthesiser, Window
from loop.runner.evolution import PastWindow
from strategy.evolve.evolver import Budget, Evolver, EvolverConfig, Progress, Stages, StepOutcome
from strategy.evolve.sandbox import SandboxedPolicy, SandboxLimits, WorkerPool

STEP_EVALUATIONS = 48
"""Of one step: often enough a winner tries the last stages, and the next step builds on it."""
STEP_S = 600.0
"""Wall time of one step at most, so that a slow synthesiser's winners are proven too."""
AGREEMENT = 0.02
"""A champion scored apart from the twin may differ by this share from its score beside the twin."""
SPENT = "budget of evaluations spent"
OVER = "time is up"
BARREN_STEPS = 3
"""Steps in a row without any candidate after which a run ends: of `STEP_S` each while an endpoint is silent."""


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of windows, ascending."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    """Empty: too few windows; candidates are then proven in perturbed worlds only."""
    held_out: tuple[int, ...]
    """Later than all others, seen by no search. Empty: there is one window only."""


def split(count: int) -> Split:
    """The last quarter held out; of the others a quarter for validation: one block at the end, and where there
    are eight or more a second one in the middle, so that what is proven is not one regime's luck. Blocks,
    since each change between them costs a change-over.
    """
    held_out = 0 if count < 2 else max(1, round(count / 4))
    rest = count - held_out
    size = 0 if count < 4 else max(1, round(rest / 4))
    early = size // 2 if rest >= 8 else 0
    middle = (rest - size) // 2
    validation = (*range(middle, middle + early), *range(rest - size + early, rest))
    train = tuple(i for i in range(rest) if i not in validation)
    return Split(train, validation, tuple(range(rest, count)))


@dataclass(frozen=True, slots=True)
class OfflineBudget:
    """What a run may spend. `seconds` None: evaluations alone decide."""

    evaluations: int
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class OfflineOutcome:
    """What came of a run."""

    champion: PolicySource
    """The first policy itself when nothing was proven better."""
    reason: str
    """Why it ended."""
    ratio: float
    """Champion's objective on the train windows against the first policy's."""
    steps: int
    evaluations: int
    candidates: int
    deaths: dict[str, int]
    promotions: tuple[str, ...]
    """Digests, in order."""
    wall_s: float
    cpu_s: float


class OfflineEvolution:
    """Evolves a policy on the train windows. A context manager: its workers end with it."""

    def __init__(
        self,
        setup: OfflineSetup,
        past: Sequence[PastWindow],
        first: PolicySource,
        synthesiser: Synthesiser,
        archive: WatchedArchive,
        *,
        workers: int,
        world_key: str,
        champion: PolicySource | None = None,
        on_promotion: Callable[[PolicySource], None] = lambda _: None,
        on_step: Callable[[StepOutcome], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`champion`: where an earlier run left off; None: begin with `first`. `world_key` names the setting:
        scores of different settings never mix."""
        self.watch = archive.watch
        self.split = split(len(past))
        self._setup = setup
        self._past = tuple(past)
        self._first = first
        self._incumbent = champion or first
        self._synthesiser = synthesiser
        self._on_promotion = on_promotion
        self._on_step = on_step
        self._clock = clock
        self._refused: set[str] = set()
        self._candidates = 0
        self._began_cpu_s = _cpu_s()
        self._pool = WorkerPool(workers, ENTRY, pickle.dumps(setup.scoring))
        train = self.split.train
        busiest = sorted(train, key=lambda i: _work(past[i].window))[len(train) // 2]
        self.stages = Stages(
            smoke=EvaluationTask((busiest,)),
            full=EvaluationTask(train),
            held_out=EvaluationTask(self.split.validation) if self.split.validation else None,
            perturbed=tuple(EvaluationTask(train, world) for world in range(1, len(setup.worlds))),
        )
        inner = TwinEvaluator(self._pool, setup.scoring, first, deadline_s=60.0 + 2.0 * len(train))
        inner.learn([p for p in past if p.window.index not in self.split.held_out])
        known = Known(archive, self.stages.full, world_key, first.digest)
        self._evaluator = WatchedEvaluator(inner, self.watch, known)
        self.watch.champion = champion
        self.watch.best_ratio = min(1.0, known.best_ratio())
        config = EvolverConfig(batch=2 * workers, smoke_slack=1.3)
        self._evolver = Evolver(
            synthesiser, self._evaluator, archive, config, world_key=world_key, watch=self._progress
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._synthesiser.close()
        self._pool.close()

    def run(self, budget: OfflineBudget, stop: Callable[[], bool]) -> OfflineOutcome:
        """Step after step until the budget is spent, the synthesiser gives up, or `stop` says so."""
        began = self._clock()
        deadline = began + budget.seconds if budget.seconds is not None else math.inf
        promotions: list[str] = []
        idle = 0
        # The first policy is what best-so-far is measured against, also where a later champion is resumed.
        resumed = self._incumbent.digest != self._first.digest
        if resumed and self._evaluator.known.objective(self._first.digest) is None:
            list(self._evaluator.evaluate([(self._first, self.stages.full)]))
        while not (reason := self._ended(budget, deadline, stop)):
            left = budget.evaluations - self.watch.evaluations
            until = min(deadline, self._clock() + STEP_S)
            outcome = self._step(left, until, stop)
            self._candidates += outcome.candidates
            self.watch.candidates = self._candidates
            self._on_step(outcome)
            if outcome.best is not None and self._promote(outcome.best, stop):
                promotions.append(outcome.best.digest)
            idle = 0 if outcome.candidates else idle + 1
            if stop():
                continue
            reason = why_end(outcome.reason, idle, left, last=until == deadline)
            if reason:
                trouble = getattr(self._synthesiser, "trouble", "")
                reason += f"; {trouble}" if trouble else ""
                break
        return OfflineOutcome(
            champion=self._incumbent,
            reason=reason,
            ratio=self._evaluator.known.ratio(self._incumbent.digest),
            steps=self.watch.steps,
            evaluations=self.watch.evaluations,
            candidates=self._candidates,
            deaths={str(death): n for death, n in sorted(self.watch.deaths.items())},
            promotions=tuple(promotions),
            wall_s=self._clock() - began,
            cpu_s=self._close_and_count(),
        )

    def _ended(self, budget: OfflineBudget, deadline: float, stop: Callable[[], bool]) -> str:
        if stop():
            return "interrupted"
        if self._clock() >= deadline:
            return OVER
        # a step needs the incumbent's scores, a candidate's, and the last stages of both
        if budget.evaluations - self.watch.evaluations < 4:
            return SPENT
        return ""

    def _step(self, evaluations: int, deadline: float, stop: Callable[[], bool]) -> StepOutcome:
        self.watch.steps += 1
        self.watch.status = f"step {self.watch.steps}: building on {self._incumbent.name}"
        last = self._past[self.split.train[-1]]
        whole = evaluations < 1.5 * STEP_EVALUATIONS  # a last step too small to try anything is a waste
        budget = Budget(evaluations if whole else STEP_EVALUATIONS, deadline)
        return self._evolver.step(
            self._incumbent,
            (self._first, *portable_baselines()),
            last.obs,
            self.stages,
            budget,
            stop=stop,
        )

    def _progress(self, progress: Progress) -> None:
        """What the evolver tells within a step."""
        self.watch.candidates = self._candidates + progress.candidates
        self.watch.pending = progress.pending

    def _promote(self, policy: PolicySource, stop: Callable[[], bool]) -> bool:
        """Let a champion take over, unless it scores differently where it cannot touch the twin."""
        if policy.digest in self._refused or policy.digest == self._incumbent.digest or stop():
            return False
        self.watch.status = f"scoring {policy.name} once more, apart from the twin"
        doubt = self._doubt(policy)
        if doubt:
            self._refused.add(policy.digest)
            self._evolver.refuse(policy, doubt)
            self.watch.status = doubt
            return False
        self._incumbent = policy
        self.watch.champion = policy
        self.watch.promoted += 1
        self._on_promotion(policy)
        return True

    def _doubt(self, policy: PolicySource) -> str:
        """Why a champion's score cannot be believed; empty: it can."""
        task = self.stages.smoke
        past = [self._past[i] for i in task.windows]
        claimed = next(e for _, e in self._evaluator.evaluate([(policy, task)]))
        with SandboxedPolicy(policy, SandboxLimits().patient()) as apart_policy:
            apart = score_apart(self._setup.scoring, apart_policy, past_segments(past))
        if claimed.score is None or apart.score is None:
            return f"{policy.name} fails outside the scoring worker: {apart.detail or claimed.detail}"
        off = abs(apart.score.objective / max(1e-9, claimed.score.objective) - 1.0)
        if off > AGREEMENT:
            return f"{policy.name} scores {off:.1%} differently when it cannot touch the twin: refused"
        return ""

    def _close_and_count(self) -> float:
        """CPU seconds of this process and of the workers, which count once they have ended."""
        self._pool.close()
        return _cpu_s() - self._began_cpu_s


def why_end(said: str, idle: int, left: int, *, last: bool) -> str:
    """Why a search ends after a step that `said` why it ended; empty: it goes on. `idle`: steps without a
    candidate up to now; `left`: evaluations before the step; `last`: there was no time for another one."""
    if not idle:
        return ""
    if "deadline" in said:
        return OVER if last else said if idle >= BARREN_STEPS else ""
    if left < STEP_EVALUATIONS:
        return SPENT if "budget" in said else said
    return said if idle >= BARREN_STEPS else ""


def _work(window: Window) -> int:
    return sum(r.input_tokens + 10 * r.output_tokens for r in window.requests)


def _cpu_s() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
