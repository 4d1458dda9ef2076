"""Who scored what in the present step, and what is paid to know more.

A score belongs to exactly one (policy, windows, world): when the windows move, it is gone. An evaluation is
archived as it comes, and one that the archive holds for exactly the same in the same set-up is not paid for
twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf, isfinite

from loop.contracts import Death, Evaluation, EvaluationTask, Evaluator, PolicySource, Score
from strategy.evolve.archive import Archive
from strategy.evolve.terms import Budget

_PASSING = (Death.TIMEOUT, Death.CRASH)
"""May be the machine's fault: not believed in a later step."""


class Scoreboard:
    """Scores of one step at a time. `world_key` names the set-up that tasks refer to; without one, nothing is
    taken over from the archive, since equal windows of different runs are different tasks."""

    def __init__(
        self,
        evaluator: Evaluator,
        archive: Archive,
        *,
        clock: Callable[[], float],
        world_key: str,
        safety: float,
    ) -> None:
        self._evaluator = evaluator
        self._archive = archive
        self._clock = clock
        self._world_key = world_key
        self._safety = safety
        self._known: dict[tuple[str, EvaluationTask], Evaluation] = {}
        self._window_s = 0.0
        """Estimated duration of one window in one evaluation, in a batch with others."""
        self._incumbent = ""
        self._generation = 0
        self._budget = Budget(0, 0.0)
        self._stop: Callable[[], bool] = lambda: False
        self.spent = 0
        """Evaluations paid for in this step."""
        self.reused = 0
        """Evaluations found in the archive in this step."""
        self.on_result: Callable[[], None] = lambda: None
        """Called after each evaluation."""

    def begin(
        self,
        generation: int,
        incumbent: PolicySource,
        tasks: frozenset[EvaluationTask],
        budget: Budget,
        stop: Callable[[], bool],
    ) -> None:
        """A step begins: a score on windows that have moved on is no score."""
        self._known = {
            key: e for key, e in self._known.items() if key[1] in tasks and e.death not in _PASSING
        }
        self._generation, self._incumbent = generation, incumbent.digest
        self._budget, self._stop = budget, stop
        self.spent = self.reused = 0

    def forget(self) -> None:
        """The worlds have changed: no score counts any more, nor any in the archive."""
        self._known.clear()
        self._archive.forget(self._world_key)

    @property
    def left(self) -> int:
        """Evaluations that may still be paid for."""
        return self._budget.evaluations - self.spent

    @property
    def stopped(self) -> bool:
        """Whether the step was told to end."""
        return self._stop()

    def evaluation(self, policy: PolicySource, task: EvaluationTask) -> Evaluation | None:
        """What is known of a policy on a task, for nothing; None: nothing."""
        key = policy.digest, task
        if key not in self._known and self._world_key:
            paid = self._archive.find(policy.digest, task, self._world_key)
            if paid is not None and paid.death not in _PASSING:
                self._known[key] = paid
                self.reused += 1
        return self._known.get(key)

    def score(self, policy: PolicySource, task: EvaluationTask) -> Score | None:
        """Its score; a program that died on the task has none."""
        return _score(self.evaluation(policy, task))

    def incumbents(self, task: EvaluationTask) -> Score | None:
        """The incumbent's score on a task."""
        return _score(self._known.get((self._incumbent, task)))

    def objective_of(self, digest: str, task: EvaluationTask) -> float | None:
        """The objective of a policy, or of the incumbent where it has none."""
        score = _score(self._known.get((digest, task))) or self.incumbents(task)
        return score.objective if score is not None else None

    def ratio(self, policy: PolicySource, task: EvaluationTask) -> float:
        """Objective against the incumbent's on the same task; inf when one of them has no score."""
        return _ratio(self.score(policy, task), self.incumbents(task))

    def window_ratios(self, policy: PolicySource, task: EvaluationTask) -> list[float]:
        """Objective of each window against the incumbent's on the same window."""
        mine, theirs = self.score(policy, task), self.incumbents(task)
        if mine is None or theirs is None:
            return []
        return [m / t for m, t in zip(mine.per_window, theirs.per_window, strict=False) if t > 0 and m > 0]

    def faults_more(self, policy: PolicySource, task: EvaluationTask) -> bool:
        """Whether a policy makes more faulty decisions than the incumbent."""
        mine, theirs = self.score(policy, task), self.incumbents(task)
        return mine is not None and mine.faults > (theirs.faults if theirs is not None else 0)

    def missing(self, policies: Iterable[PolicySource], task: EvaluationTask) -> list[PolicySource]:
        """Those of which nothing is known on a task."""
        return [p for p in policies if self.evaluation(p, task) is None]

    def evaluate(self, policies: Sequence[PolicySource], stage: str, task: EvaluationTask) -> None:
        """Score policies on a task, unless they are. When the deadline or a stop comes first, what is not
        done by then is given up, and stays unknown."""
        todo = self.missing(policies, task)
        if not todo or not self.has_time(0):
            return
        began = self._clock()
        results = self._evaluator.evaluate([(policy, task) for policy in todo])
        done = 0
        for index, evaluation in results:
            done += 1
            self._record(todo[index], stage, task, evaluation)
            if done < len(todo) and (self._stop() or self._clock() >= self._budget.deadline_s):
                break
        else:
            for policy in todo:
                if (policy.digest, task) not in self._known:
                    lost = Evaluation(policy.digest, None, Death.CRASH, "the evaluator returned no result")
                    self._known[policy.digest, task] = lost
                    self.spent += 1
        took = (self._clock() - began) / (max(1, done) * max(1, len(task.windows)))
        self._window_s = max(took, 0.5 * self._window_s + 0.5 * took)

    def unscored(self, stages: Iterable[tuple[str, EvaluationTask]]) -> str:
        """Why nothing can be compared with the incumbent in one of these stages; empty: it has scores."""
        for stage, task in stages:
            if self.incumbents(task) is None:
                known = self._known.get((self._incumbent, task))
                why = f"{known.death or Death.ERROR}: {known.detail}" if known is not None else "cut off"
                return f"it has no score to compare with in the {stage} stage ({why})"
        return ""

    def has_time(self, windows: int) -> bool:
        """Whether so many windows can be evaluated before the deadline."""
        if self._stop():
            return False
        return self._clock() + self._safety * windows * self._window_s < self._budget.deadline_s

    def _record(self, policy: PolicySource, stage: str, task: EvaluationTask, evaluation: Evaluation) -> None:
        self.spent += 1
        self._known[policy.digest, task] = evaluation
        ratio = _ratio(_score(evaluation), self.incumbents(task))
        self._archive.add_evaluation(
            stage,
            task,
            evaluation,
            self._generation,
            world_key=self._world_key,
            ratio=ratio if ratio < inf else None,
        )
        self.on_result()


def windows_in(tasks: Iterable[EvaluationTask]) -> int:
    """Windows to evaluate for one policy on all these tasks."""
    return sum(max(1, len(task.windows)) for task in tasks)


def _score(evaluation: Evaluation | None) -> Score | None:
    if evaluation is None or evaluation.death is not None or evaluation.score is None:
        return None
    return evaluation.score if isfinite(evaluation.score.objective) else None


def _ratio(mine: Score | None, theirs: Score | None) -> float:
    if mine is None or theirs is None:
        return inf
    if theirs.objective <= 0.0:
        return 1.0 if mine.objective == theirs.objective else inf
    return mine.objective / theirs.objective
