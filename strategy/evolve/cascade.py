"""The cascade that every candidate climbs: static check, smoke, short and full stage.

Each stage is paired with the incumbent on the same windows of the same world (common random numbers); who is
beaten, fails, or does what another did goes no further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loop.contracts import Death, EvaluationTask, PolicySource
from strategy.evolve.archive import Archive
from strategy.evolve.novelty import Novelty, identity_of
from strategy.evolve.scoreboard import Scoreboard
from strategy.evolve.sequential import hopeless
from strategy.evolve.settlement import Settlement
from strategy.evolve.static import check_policy
from strategy.evolve.step import Recorder, Step
from strategy.evolve.terms import EvolverConfig


@dataclass(slots=True)
class Cascade:
    """Sends candidates through the stages. Those that come through the full one take their places in the
    population, whether they win there or not; winners are finalists."""

    config: EvolverConfig
    board: Scoreboard
    archive: Archive
    novelty: Novelty
    recorder: Recorder
    settlement: Settlement

    def admit(
        self, step: Step, candidates: Sequence[PolicySource], homes: Mapping[str, int]
    ) -> list[PolicySource]:
        """Archive new candidates, and bury those that break the rules or were there before. `homes`: the
        island of each, by digest."""
        step.candidates += len(candidates)
        identities = [identity_of(candidate.source) for candidate in candidates]
        pairs = list(zip(candidates, identities, strict=True))
        new = self.archive.add_all(pairs, step.generation, homes)
        admitted = []
        for (candidate, identity), is_new in zip(pairs, new, strict=True):
            problems = check_policy(candidate.source)
            first = self.novelty.claim(candidate, identity)
            if problems:
                detail = "; ".join(str(p) for p in problems[:3])
                self.recorder.bury(step, candidate, Death.STATIC, detail, archived=is_new)
            elif first != candidate.digest or not is_new:
                detail = f"is the same program as {first}, but for names, remarks and last digits"
                self.recorder.bury(step, candidate, Death.DUPLICATE, detail, archived=is_new)
            else:
                admitted.append(candidate)
        return admitted

    def climb(self, step: Step, candidates: Sequence[PolicySource]) -> None:
        """Evaluate from the smoke to the full stage. Candidates whose evaluation is cut off by the deadline
        or a stop stay open in the archive."""
        alive = list(candidates)
        looks = sum(len(task.windows) > 1 for _, task in step.rungs[:-1])
        for stage, task in step.rungs[:-1]:
            if not alive:
                return
            self.board.evaluate(alive, stage, task)
            alive = [c for c in alive if self._passes(step, c, stage, task, looks)]
        self.board.evaluate(alive, "full", step.stages.full)
        for candidate in alive:
            self._finish(step, candidate)

    def _passes(
        self, step: Step, candidate: PolicySource, stage: str, task: EvaluationTask, looks: int
    ) -> bool:
        """Whether a candidate goes on to the next stage."""
        if not self._lives(step, candidate, stage, task):
            return False
        ratio = self.board.ratio(candidate, task)
        ratios = self.board.window_ratios(candidate, task)
        if ratio > self.config.smoke_slack:
            detail = f"{ratio:.3f} of the incumbent in the {stage} stage"
        elif hopeless(ratios, self.config.margin, self.config.futility, looks):
            detail = (
                f"{ratio:.3f} of the incumbent over the first {len(ratios)} windows: "
                f"it will not win by {self.config.margin:.1%}"
            )
        else:
            return True
        self.recorder.bury(step, candidate, Death.WORSE, detail, task)
        return False

    def _finish(self, step: Step, candidate: PolicySource) -> None:
        """The full stage: winners are finalists, and all are kept as parents."""
        task = step.stages.full
        if not self._lives(step, candidate, "full", task):
            return
        ratio = self.board.ratio(candidate, task)
        self.settlement.settle(step, candidate)
        worst = max(self.board.window_ratios(candidate, task), default=0.0)
        if ratio > 1.0 - self.config.margin:
            detail = f"{ratio:.3f} of the incumbent in the full stage"
        elif worst > self.config.worst_window:
            detail = f"{ratio:.3f} of the incumbent in the full stage, but {worst:.2f} in one of its windows"
        else:
            step.finalists.append(candidate)
            evaluation = self.board.evaluation(candidate, task)
            if evaluation is not None:
                self.recorder.tell(step, candidate, evaluation, task)
            return
        self.recorder.bury(step, candidate, Death.WORSE, detail, task)

    def _lives(self, step: Step, candidate: PolicySource, stage: str, task: EvaluationTask) -> bool:
        """Whether a candidate has a score of its own in this stage; if not, it is buried, unless its
        evaluation was cut off."""
        evaluation = self.board.evaluation(candidate, task)
        if evaluation is None:
            return False
        score = self.board.score(candidate, task)
        death, detail = evaluation.death, evaluation.detail
        if death is None and score is None:
            death, detail = Death.ERROR, detail or "no score"
        if death is None and self.board.faults_more(candidate, task):
            death, detail = Death.ERROR, f"faults in its decisions in the {stage} stage: {detail}"
        if death is None and score is not None and self._shows_twins(step, task):
            twin = self.novelty.twin(candidate, task, score)
            if twin:
                death, detail = Death.DUPLICATE, f"did the same as {twin} in the {stage} stage"
        if death is None:
            return True
        self.recorder.bury(step, candidate, death, detail, task)
        return False

    def _shows_twins(self, step: Step, task: EvaluationTask) -> bool:
        """Whether doing the same on a task means doing the same: not when the full stage is in another
        world, where candidates may differ in what they have not been asked yet."""
        return task.world == step.stages.full.world and len(task.windows) >= self.config.twin_windows
