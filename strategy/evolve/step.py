"""The state of one step, shared by its parts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from loop.contracts import Death, Evaluation, EvaluationTask, Observation, PolicySource, Synthesiser
from strategy.evolve.archive import Archive
from strategy.evolve.scoreboard import Scoreboard
from strategy.evolve.terms import Budget, Stages


@dataclass(slots=True)
class Step:
    """What a step was given, and what has come of it so far."""

    generation: int
    incumbent: PolicySource
    obs: Observation | None
    stages: Stages
    rungs: tuple[tuple[str, EvaluationTask], ...]
    """Stages that every candidate climbs."""
    budget: Budget
    regime: str
    candidates: int = 0
    resumed: int = 0
    deaths: Counter[Death] = field(default_factory=Counter)
    guests: dict[str, PolicySource] = field(default_factory=dict)
    """The incumbent and what it was given as parents: they stand on every island in this step."""
    ratios: dict[str, float] = field(default_factory=dict)
    """Of all policies scored in the full stage of this step, by digest."""
    finalists: list[PolicySource] = field(default_factory=list)
    """Winners of the full stage."""

    @property
    def tasks(self) -> tuple[tuple[str, EvaluationTask], ...]:
        """All that may be evaluated, by stage."""
        return (*self.rungs, *self.stages.last)


class Recorder:
    """Says what became of a candidate: to the archive, to the count, and to the synthesiser."""

    def __init__(self, archive: Archive, synthesiser: Synthesiser, board: Scoreboard) -> None:
        self._archive = archive
        self._synthesiser = synthesiser
        self._board = board

    def bury(
        self,
        step: Step,
        candidate: PolicySource,
        death: Death,
        detail: str,
        task: EvaluationTask | None = None,
        *,
        archived: bool = True,
    ) -> None:
        """A candidate goes no further. With `task`, its score there is told along. `archived` False: the
        archive holds the same program already, whose own outcome stands."""
        step.deaths[death] += 1
        if archived:
            self._archive.add_outcome(candidate.digest, death, detail, step.generation)
        known = self._board.evaluation(candidate, task) if task is not None else None
        score, wall_s = (known.score, known.wall_s) if known is not None else (None, 0.0)
        self.tell(step, candidate, Evaluation(candidate.digest, score, death, detail, wall_s), task)

    def tell(
        self, step: Step, candidate: PolicySource, evaluation: Evaluation, task: EvaluationTask | None
    ) -> None:
        """The objective of its first parent on the same task makes the score comparable. Guests are not the
        synthesiser's."""
        if candidate.digest in step.guests:
            return
        parent = candidate.parents[0] if candidate.parents else step.incumbent.digest
        objective = self._board.objective_of(parent, task) if task is not None else None
        self._synthesiser.tell(candidate, evaluation, objective)
