"""One step of evolution: ask for candidates, send them through the cascade, hand over the one that won.

Cascade: static check -> smoke -> full (all given past windows) -> held-out window -> perturbed worlds. Each
candidate is compared with the incumbent on the same windows of the same world (common random numbers), and
each is archived with the reason of its end.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log, sqrt
from statistics import fmean, stdev

import structlog

from loop.contracts import (
    Death,
    Evaluation,
    EvaluationTask,
    Evaluator,
    Observation,
    Parent,
    PolicySource,
    Score,
    Synthesiser,
)
from strategy.evolve.archive import Archive
from strategy.evolve.static import check_policy, normalised_digest

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EvolverConfig:
    """How strictly candidates are judged. Ratios are objectives against the incumbent's; below 1 is better."""

    population: int = 8
    """Policies kept as parents."""
    batch: int = 4
    """Candidates asked for at a time."""
    smoke_slack: float = 1.25
    """A candidate whose ratio in the smoke stage is above this goes no further."""
    margin: float = 0.01
    """What a candidate must win by, in the full stage and over all stages together."""
    worst_window: float = 1.5
    """A candidate with a window whose objective is so many times the incumbent's is not promoted."""
    confidence: float = 1.5
    """Standard errors by which the mean log ratio over all windows of the proof must lie below zero: the best
    of many candidates looks better than it is."""
    finalists: int = 3
    """Winners of the full stage that may try the last stages, the best first."""
    safety: float = 1.5
    """Work is begun only when so many times its estimated duration is left before the deadline."""


@dataclass(frozen=True, slots=True)
class Stages:
    """What the cascade evaluates on: windows of the past, none of `held_out` in `smoke` or `full`."""

    smoke: EvaluationTask
    full: EvaluationTask
    held_out: EvaluationTask | None = None
    perturbed: tuple[EvaluationTask, ...] = ()

    @property
    def last(self) -> tuple[tuple[str, EvaluationTask], ...]:
        """The stages that only finalists see, by name."""
        held_out = [("held_out", self.held_out)] if self.held_out is not None else []
        return (*held_out, *(("perturbed", task) for task in self.perturbed))


@dataclass(frozen=True, slots=True)
class Budget:
    """What one step may use."""

    evaluations: int
    deadline_s: float
    """On the evolver's clock."""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What came of a step."""

    best: PolicySource | None
    """To be handed over to at the next monitoring point; None: the incumbent stays."""
    reason: str
    """In words, for the journal."""
    evaluations: int
    candidates: int
    deaths: Mapping[Death, int]
    ratio: float = 1.0
    """Mean ratio of `best` over the stages from full on."""
    generation: int = 0


@dataclass(slots=True)
class _Member:
    """A policy of the population."""

    policy: PolicySource
    ratio: float = float("inf")


@dataclass(slots=True)
class _Step:
    """The state of one step."""

    incumbent: PolicySource
    obs: Observation | None
    stages: Stages
    budget: Budget
    stop: Callable[[], bool]
    spent: int = 0
    candidates: int = 0
    deaths: Counter[Death] = field(default_factory=Counter)
    finalists: list[_Member] = field(default_factory=list)
    members: dict[str, _Member] = field(default_factory=dict)

    @property
    def reserve(self) -> int:
        """Evaluations that the last stages of the incumbent and of two finalists need."""
        return 3 * len(self.stages.last)


class Evolver:
    """Evolves policies step by step, from where the archive left off.

    The population lives on between steps, but its scores do not: each step scores it again on the windows
    that it is given. `clock` gives wall seconds.
    """

    def __init__(
        self,
        synthesiser: Synthesiser,
        evaluator: Evaluator,
        archive: Archive,
        config: EvolverConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._synthesiser = synthesiser
        self._evaluator = evaluator
        self._archive = archive
        self._config = config or EvolverConfig()
        self._clock = clock
        self._seen = archive.normalised()
        self._generation = archive.generation()
        self._population: list[PolicySource] = []
        self._scores: dict[tuple[str, EvaluationTask], Evaluation] = {}
        self._window_s = 0.0
        """Estimated duration of one window in one evaluation, in a batch with others."""

    @property
    def population(self) -> tuple[PolicySource, ...]:
        """The parents of the next step, the best of the last step first."""
        return tuple(self._population)

    def forget_scores(self) -> None:
        """Score everything again, e.g. after the simulated world was calibrated anew."""
        self._scores.clear()

    def step(
        self,
        incumbent: PolicySource,
        parents: Iterable[PolicySource],
        obs: Observation | None,
        stages: Stages,
        budget: Budget,
        *,
        stop: Callable[[], bool] = lambda: False,
    ) -> StepOutcome:
        """Search until the budget or the deadline is near, then let the best winners try the last stages;
        as soon as `stop` says so, begin nothing more."""
        self._generation += 1
        self._keep_scores_of(stages)
        step = _Step(incumbent, obs, stages, budget, stop)
        unscored = self._score_incumbent(step)
        if unscored:
            return self._outcome(step, None, f"incumbent kept; {unscored}")
        self._score_parents(step, parents)
        reason = self._search(step)
        return self._decide(step, reason)

    def _keep_scores_of(self, stages: Stages) -> None:
        """A score on windows that have moved on is no score."""
        tasks = {stages.smoke, stages.full, *(task for _, task in stages.last)}
        self._scores = {key: e for key, e in self._scores.items() if key[1] in tasks}

    def _score_incumbent(self, step: _Step) -> str:
        """What all else is compared with; why that cannot be, or empty."""
        incumbent, stages = step.incumbent, (("smoke", step.stages.smoke), ("full", step.stages.full))
        self._archive.add(incumbent, _identity(incumbent.source), self._generation)
        for stage, task in stages:
            self._evaluate(step, [incumbent], stage, task)
        return self._unscored(step, stages)

    def _unscored(self, step: _Step, stages: Iterable[tuple[str, EvaluationTask]]) -> str:
        """Why nothing can be compared with the incumbent in one of these stages; empty: it has scores."""
        for stage, task in stages:
            if self._score(step.incumbent, task) is None:
                evaluation = self._scores[step.incumbent.digest, task]
                death = f"{evaluation.death or Death.ERROR}: {evaluation.detail}"
                return f"it has no score to compare with in the {stage} stage ({death})"
        return ""

    def _score_parents(self, step: _Step, parents: Iterable[PolicySource]) -> None:
        """Parents and the population, as far as half of the budget goes."""
        known = {step.incumbent.digest: step.incumbent}
        for policy in (*parents, *self._population):
            known.setdefault(policy.digest, policy)
        for policy in known.values():
            identity = _identity(policy.source)
            self._seen.add(identity)
            self._archive.add(policy, identity, self._generation)
        others = [p for p in known.values() if p.digest != step.incumbent.digest]
        room = max(0, step.budget.evaluations // 2 - step.spent)
        fresh = [p for p in others if (p.digest, step.stages.full) not in self._scores]
        cached = [p for p in others if (p.digest, step.stages.full) in self._scores]
        if self._has_time(step, fresh[:room], step.stages.full):
            self._evaluate(step, fresh[:room], "full", step.stages.full)
            cached += fresh[:room]
        step.members[step.incumbent.digest] = _Member(step.incumbent, 1.0)
        for policy in cached:
            ratio = self._ratio(step, policy, step.stages.full)
            step.members[policy.digest] = _Member(policy, ratio)
            if ratio <= 1.0 - self._config.margin:
                step.finalists.append(step.members[policy.digest])

    def _search(self, step: _Step) -> str:
        """Ask and evaluate until something runs out; what did."""
        without = 0
        while True:
            left = step.budget.evaluations - step.spent - step.reserve
            count = min(self._config.batch, left // 2)
            if count < 1:
                return "budget of evaluations spent"
            probe = [step.incumbent] * count
            both = (step.stages.smoke, step.stages.full, *(task for _, task in step.stages.last))
            if not self._has_time(step, probe, *both):
                return "stopped" if step.stop() else "deadline near"
            candidates = self._synthesiser.ask(self._parents(step), step.obs, count)
            without = 0 if candidates else without + 1
            if without == 2:
                return "the synthesiser has no more ideas"
            self._cascade(step, candidates)

    def _parents(self, step: _Step) -> list[Parent]:
        """The population of the moment; failures are no parents."""
        ranked = sorted(step.members.values(), key=lambda m: (m.ratio, m.policy.digest))
        alive = [m for m in ranked if m.ratio < float("inf")] or ranked
        return [Parent(m.policy, m.ratio) for m in alive[: self._config.population]]

    def _cascade(self, step: _Step, candidates: Sequence[PolicySource]) -> None:
        """Static check, smoke and full stage for a batch."""
        step.candidates += len(candidates)
        alive = [c for c in candidates if self._admit(step, c)]
        alive = self._run_stage(step, alive, "smoke", step.stages.smoke, self._config.smoke_slack)
        alive = self._run_stage(step, alive, "full", step.stages.full, float("inf"))
        for candidate in alive:
            evaluation = self._scores[candidate.digest, step.stages.full]
            ratio = self._ratio(step, candidate, step.stages.full)
            step.members[candidate.digest] = _Member(candidate, ratio)
            if ratio <= 1.0 - self._config.margin:
                step.finalists.append(step.members[candidate.digest])
            else:
                self._bury(step, candidate, Death.WORSE, f"{ratio:.3f} of the incumbent in the full stage")
            self._tell(step, candidate, evaluation, step.stages.full)

    def _admit(self, step: _Step, candidate: PolicySource) -> bool:
        """The static check, and the test for duplicates."""
        problems = check_policy(candidate.source)
        identity = _identity(candidate.source)
        is_new = self._archive.add(candidate, identity, self._generation)
        if problems:
            death, detail = Death.STATIC, "; ".join(str(p) for p in problems[:3])
        elif identity in self._seen or not is_new:
            death, detail = Death.DUPLICATE, "does the same as a candidate before it"
        else:
            self._seen.add(identity)
            return True
        self._bury(step, candidate, death, detail)
        self._synthesiser.tell(candidate, Evaluation(candidate.digest, None, death, detail), None)
        return False

    def _run_stage(
        self, step: _Step, candidates: list[PolicySource], stage: str, task: EvaluationTask, slack: float
    ) -> list[PolicySource]:
        """Evaluate, and bury those who fail or are beaten beyond the slack."""
        self._evaluate(step, candidates, stage, task)
        alive = []
        for candidate in candidates:
            evaluation = self._scores[candidate.digest, task]
            ratio = self._ratio(step, candidate, task)
            death, detail = evaluation.death, evaluation.detail
            if death is None and evaluation.score is None:
                death, detail = Death.ERROR, detail or "no score"
            if death is None and self._faults_more(step, evaluation.score, task):
                death, detail = Death.ERROR, f"faults in its decisions in the {stage} stage: {detail}"
            if death is None and ratio > slack:
                death, detail = Death.WORSE, f"{ratio:.3f} of the incumbent in the {stage} stage"
            if death is None:
                alive.append(candidate)
                continue
            self._bury(step, candidate, death, detail)
            failed = Evaluation(candidate.digest, evaluation.score, death, detail, evaluation.wall_s)
            self._tell(step, candidate, failed, task)
        return alive

    def _decide(self, step: _Step, reason: str) -> StepOutcome:
        """Let the finalists try the last stages, the best first, and close the step."""
        best, ratio = None, 1.0
        step.finalists.sort(key=lambda m: (m.ratio, m.policy.digest))
        for finalist in step.finalists[: self._config.finalists]:
            hindrance = self._run_last_stages(step, finalist)
            if hindrance:
                reason += f"; {hindrance}"
                break
            ratio, failure = self._verdict(step, finalist)
            if not failure:
                best = finalist.policy
                detail = f"promoted: {ratio:.3f} of the incumbent over all stages"
                self._archive.add_outcome(best.digest, None, detail, self._generation)
                break
            self._bury(step, finalist.policy, Death.OVERFIT, failure)
            finalist.ratio = max(1.0, finalist.ratio)
        ranked = sorted(step.members.values(), key=lambda m: (m.ratio, m.policy.digest))
        self._population = [m.policy for m in ranked if m.ratio < float("inf")][: self._config.population]
        text = (
            f"{best.name}: {ratio:.3f} of the incumbent; {best.note}" if best else f"incumbent kept; {reason}"
        )
        return self._outcome(step, best, text, ratio if best else 1.0)

    def _outcome(self, step: _Step, best: PolicySource | None, text: str, ratio: float = 1.0) -> StepOutcome:
        _log.info("evolution step", generation=self._generation, evaluations=step.spent, outcome=text)
        return StepOutcome(
            best,
            text,
            step.spent,
            step.candidates,
            dict(step.deaths),
            ratio,
            self._generation,
        )

    def _run_last_stages(self, step: _Step, finalist: _Member) -> str:
        """Evaluate a finalist and the incumbent in the last stages; what hinders it, or empty."""
        stages = step.stages.last
        need = [
            (policy, stage, task)
            for stage, task in stages
            for policy in (step.incumbent, finalist.policy)
            if (policy.digest, task) not in self._scores
        ]
        if step.spent + len(need) > step.budget.evaluations:
            return "no evaluations left for the last stages"
        if need and not self._has_time(step, [finalist.policy], *(task for _, _, task in need)):
            return "no time left for the last stages"
        for stage, task in stages:
            both = [p for p in (step.incumbent, finalist.policy) if (p.digest, task) not in self._scores]
            self._evaluate(step, both, stage, task)
        return self._unscored(step, stages)

    def _verdict(self, step: _Step, finalist: _Member) -> tuple[float, str]:
        """(mean ratio over all stages from full on, why it is not promoted or empty)."""
        stages = step.stages.last
        ratios: dict[str, list[float]] = {"full": [finalist.ratio]}
        for stage, task in stages:
            ratios.setdefault(stage, []).append(self._ratio(step, finalist.policy, task))
        means = {stage: sum(values) / len(values) for stage, values in ratios.items()}
        everything = [value for values in ratios.values() for value in values]
        mean = sum(everything) / len(everything)
        for stage, value in means.items():
            if value >= 1.0:
                return mean, f"won the full stage with {finalist.ratio:.3f}, but {value:.3f} in {stage}"
        if mean > 1.0 - self._config.margin:
            return mean, f"{mean:.3f} of the incumbent over all stages is within the margin"
        doubt = self._doubt(step, finalist.policy)
        if doubt:
            return mean, doubt
        worst = max(self._slowest_window(step, finalist.policy, task) for _, task in self._proofs(step))
        if worst > self._config.worst_window:
            return mean, f"one window is {worst:.2f} times as bad as the incumbent's"
        return mean, ""

    def _proofs(self, step: _Step) -> tuple[tuple[str, EvaluationTask], ...]:
        return (("full", step.stages.full), *step.stages.last)

    def _evaluate(
        self, step: _Step, policies: Sequence[PolicySource], stage: str, task: EvaluationTask
    ) -> None:
        """Score policies on a task, unless they are; each result is archived as it comes."""
        todo = [p for p in policies if (p.digest, task) not in self._scores]
        if not todo:
            return
        step.spent += len(todo)
        began = self._clock()
        for index, evaluation in self._evaluator.evaluate([(policy, task) for policy in todo]):
            self._scores[todo[index].digest, task] = evaluation
            self._archive.add_evaluation(stage, task, evaluation, self._generation)
        for policy in todo:
            missing = Evaluation(policy.digest, None, Death.CRASH, "the evaluator returned no result")
            self._scores.setdefault((policy.digest, task), missing)
        took = (self._clock() - began) / (len(todo) * max(1, len(task.windows)))
        self._window_s = max(took, 0.5 * self._window_s + 0.5 * took)

    def _has_time(self, step: _Step, policies: Sequence[PolicySource], *tasks: EvaluationTask) -> bool:
        """Whether all these policies can be evaluated on all these tasks before the deadline."""
        if step.stop():
            return False
        windows = len(policies) * sum(max(1, len(task.windows)) for task in tasks)
        needed_s = self._config.safety * windows * self._window_s
        return self._clock() + needed_s < step.budget.deadline_s

    def _ratio(self, step: _Step, policy: PolicySource, task: EvaluationTask) -> float:
        """Objective against the incumbent's on the same task; inf when one of them has no score."""
        mine, theirs = self._score(policy, task), self._score(step.incumbent, task)
        if mine is None or theirs is None:
            return float("inf")
        if theirs.objective <= 0.0:
            return 1.0 if mine.objective == theirs.objective else float("inf")
        return mine.objective / theirs.objective

    def _doubt(self, step: _Step, policy: PolicySource) -> str:
        """Why the windows of the proof, paired with the incumbent's, do not prove it; empty: they do."""
        logs = [log(r) for _, task in self._proofs(step) for r in self._window_ratios(step, policy, task)]
        if len(logs) < 2:
            return ""
        mean = fmean(logs)
        error = stdev(logs) / sqrt(len(logs))
        if mean + self._config.confidence * error < 0.0:
            return ""
        return (
            f"a gain of {-mean:.1%} with a standard error of {error:.1%} over {len(logs)} windows is no proof"
        )

    def _window_ratios(self, step: _Step, policy: PolicySource, task: EvaluationTask) -> list[float]:
        """Objective of each window against the incumbent's on the same window."""
        mine, theirs = self._score(policy, task), self._score(step.incumbent, task)
        if mine is None or theirs is None:
            return []
        return [m / t for m, t in zip(mine.per_window, theirs.per_window, strict=False) if t > 0 and m > 0]

    def _slowest_window(self, step: _Step, policy: PolicySource, task: EvaluationTask) -> float:
        """The largest ratio of the objective of a window, paired with the incumbent's."""
        return max(self._window_ratios(step, policy, task), default=0.0)

    def _faults_more(self, step: _Step, score: Score | None, task: EvaluationTask) -> bool:
        theirs = self._score(step.incumbent, task)
        return score is not None and score.faults > (theirs.faults if theirs else 0)

    def _score(self, policy: PolicySource, task: EvaluationTask) -> Score | None:
        evaluation = self._scores.get((policy.digest, task))
        return evaluation.score if evaluation is not None and evaluation.death is None else None

    def _tell(
        self, step: _Step, candidate: PolicySource, evaluation: Evaluation, task: EvaluationTask
    ) -> None:
        """The objective of its first parent on the same task makes the score comparable."""
        parent = candidate.parents[0] if candidate.parents else step.incumbent.digest
        known = self._scores.get((parent, task)) or self._scores.get((step.incumbent.digest, task))
        objective = known.score.objective if known is not None and known.score is not None else None
        self._synthesiser.tell(candidate, evaluation, objective)

    def _bury(self, step: _Step, candidate: PolicySource, death: Death, detail: str) -> None:
        step.deaths[death] += 1
        self._archive.add_outcome(candidate.digest, death, detail, self._generation)


def _identity(source: str) -> str:
    """Normalised digest; of what does not parse, a digest that nothing else has."""
    try:
        return normalised_digest(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "unparsed:" + source[:200]
