"""What evolution is told and what it answers: its configuration, and the stages, budget and outcome of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loop.contracts import Death, EvaluationTask, PolicySource


@dataclass(frozen=True, slots=True)
class EvolverConfig:
    """How candidates are bred and how strictly they are judged. Ratios are objectives against the
    incumbent's; below 1 is better."""

    population: int = 8
    """Parents offered to the synthesiser at a time."""
    batch: int = 4
    """Candidates asked for at a time."""
    smoke_slack: float = 1.25
    """A candidate whose ratio in the smoke or short stage is above this goes no further."""
    margin: float = 0.01
    """What a candidate must win by, in the full stage and over all stages together."""
    worst_window: float = 1.5
    """A candidate with a window whose objective is so many times the incumbent's is not promoted."""
    confidence: float = 1.5
    """Standard errors by which the mean log ratio over all windows of the proof must lie below zero: the best
    of many candidates looks better than it is."""
    noise: float | None = None
    """Standard deviation of the log ratio of one window between policies that are equally good: windows are
    chaotic. The standard error is then this over the windows in which the two differ at all, however unevenly
    a gain is spread; None: it is estimated from the windows of the proof."""
    slack: float = 0.0
    """What a stage of the proof may lose when all of them together are won."""
    finalists: int = 3
    """Winners of the full stage that may try the last stages, the best first."""
    safety: float = 1.5
    """Work is begun only when so many times its estimated duration is left before the deadline."""
    futility: float = 0.05
    """A candidate is stopped early when, were it to win by the margin, windows as bad as those seen would have
    at most this probability over all looks together; 0: never."""
    rung_windows: int = 8
    """A full stage of at least twice so many windows is entered by its last ones, so many first and then
    twice as many each time; 0: at once."""
    twin_windows: int = 1
    """Two policies that did the same on a task of at least so many windows, in the world of the full stage,
    are twins: the later dies."""
    islands: int = 3
    """Parts of the population that evolve apart."""
    bins: int = 4
    """Cells of an island in each of the two dimensions of behaviour."""
    per_cell: int = 2
    """Policies kept in a cell, the elite and those next to it."""
    explore: float = 0.25
    """Share of the parents offered that are drawn at random instead of by rank."""
    migrate_every: int = 2
    """Steps between two migrations; 0: none."""
    migrants: int = 1
    """Policies that go from each island to the next one in a migration: its best."""
    rescore_share: float = 0.4
    """Share of a step's evaluations that may go into scoring parents again."""
    race_windows: int = 4
    """When the full stage has at least so many times the windows of the smoke stage, parents run the smoke
    stage first, and only the better half goes on."""
    barren: int = 20
    """A synthesiser whose answers held nothing new so many times in a row has no more ideas."""


@dataclass(frozen=True, slots=True)
class Stages:
    """What the cascade evaluates on: windows of the past, none of `held_out` in the stages before it."""

    smoke: EvaluationTask
    full: EvaluationTask
    held_out: EvaluationTask | None = None
    perturbed: tuple[EvaluationTask, ...] = ()
    short: EvaluationTask | None = None
    """Between smoke and full; None: left out."""
    rehearsed: EvaluationTask | None = None
    """What has not happened yet: a stage of its own in the proof; None: left out."""

    @property
    def last(self) -> tuple[tuple[str, EvaluationTask], ...]:
        """The stages that only finalists see, by name."""
        held_out = [("held_out", self.held_out)] if self.held_out is not None else []
        rehearsed = [("rehearsed", self.rehearsed)] if self.rehearsed is not None else []
        return (*held_out, *(("perturbed", task) for task in self.perturbed), *rehearsed)

    @property
    def proof(self) -> tuple[tuple[str, EvaluationTask], ...]:
        """The stages that decide on a promotion, by name."""
        return (("full", self.full), *self.last)

    def rungs(self, first: int = 0) -> tuple[tuple[str, EvaluationTask], ...]:
        """The stages that every candidate climbs, by name, the full one last. `first` > 0: a long full stage
        is entered by its last `first` windows, then twice as many, and so on (successive halving after
        Jamieson and Talwalkar, 2016)."""
        rungs = [("smoke", self.smoke)]
        if self.short is not None:
            rungs.append(("short", self.short))
        size = first
        while 0 < size <= len(self.full.windows) // 2:
            if size > len(rungs[-1][1].windows):
                rungs.append(("short", EvaluationTask(self.full.windows[-size:], self.full.world)))
            size *= 2
        rungs = [(stage, task) for stage, task in rungs if task != self.full]
        return (*rungs, ("full", self.full))


@dataclass(frozen=True, slots=True)
class Budget:
    """What one step may use."""

    evaluations: int
    deadline_s: float
    """On the evolver's clock."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a step has come, for whoever watches."""

    generation: int
    evaluations: int
    budget: int
    candidates: int
    best: str
    """Name of the best policy so far in the full stage."""
    ratio: float
    """Its ratio."""
    pending: int = 0
    """Candidates that the synthesiser is still writing."""


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
    reused: int = 0
    """Evaluations that were asked for and found in the archive instead: paid for by an earlier run."""
    resumed: int = 0
    """Candidates taken up from a step that was cut off."""
    wall_s: float = 0.0
