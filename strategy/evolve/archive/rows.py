"""The values that come out of an archive."""

from __future__ import annotations

import json
from dataclasses import dataclass

from loop.contracts import Death, Evaluation, EvaluationTask, PolicySource, Score


@dataclass(frozen=True, slots=True)
class ArchivedEvaluation:
    """One row of scores."""

    digest: str
    stage: str
    task: EvaluationTask
    generation: int
    evaluation: Evaluation
    world_key: str = ""
    """The set-up that the worlds belong to."""
    ratio: float | None = None
    """Objective against the incumbent's of that moment on the same task; None: there was none to compare."""
    stale: bool = False
    """The windows have moved since, or the world was calibrated anew: it counts no more."""


@dataclass(frozen=True, slots=True)
class ArchivedOutcome:
    """What became of a candidate; `death` None: it was promoted."""

    digest: str
    generation: int
    death: Death | None
    detail: str


@dataclass(frozen=True, slots=True)
class Placement:
    """A policy takes a place on an island of the population; all of them in order are the population."""

    digest: str
    island: int
    generation: int
    ratio: float
    """Objective against the incumbent's in the full stage; inf: it has none any more, and leaves."""
    replan_rate: float
    scaling: float
    how: str
    """`born`, `seed`, `rescored`, `migrated` or `overfit`."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of evolution. What is only known at its end is None in a step that was cut off."""

    generation: int
    incumbent: str
    """Digest."""
    tasks: tuple[tuple[str, EvaluationTask], ...]
    """(stage, what it evaluated on)."""
    world_key: str
    regime: str
    budget: int
    """Evaluations allowed."""
    began_s: float
    """Wall clock."""
    evaluations: int | None = None
    candidates: int | None = None
    best: str | None = None
    """Digest of what was promoted."""
    ratio: float | None = None
    reason: str | None = None
    wall_s: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One line of a listing."""

    digest: str
    name: str
    operator: str
    generation: int
    island: int | None
    """None: not made by the search, but given to it."""
    status: str
    """`promoted`, `dead`, `open` (its cascade was cut off), `alive` (won the full stage, or was given)."""
    death: Death | None
    detail: str
    """What is said of its end."""
    ratio: float | None
    """The last one against an incumbent in the full stage, else in the stage that it came to."""
    objective: float | None
    """Of the same evaluation."""
    stage: str
    """Of the same evaluation; empty: it has no score."""
    stale: bool
    note: str
    parents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A policy that no other beats in every respect."""

    policy: PolicySource
    score: Score


REFUSED = "refused: "
"""How the detail of an outcome begins when a promotion was taken back before it came to anything."""
POLICY_COLUMNS = "name, source, digest, parents, operator, note"


def policy_of(row: tuple[str, str, str, str, str, str]) -> PolicySource:
    """From POLICY_COLUMNS."""
    name, source, digest, parents, operator, note = row
    return PolicySource(name, source, digest, tuple(json.loads(parents)), operator, note)


_FIELDS = tuple(Score.__dataclass_fields__)


def dump_score(score: Score) -> str:
    """As JSON."""
    return json.dumps({name: getattr(score, name) for name in _FIELDS})


def load_score(text: str | None) -> Score | None:
    """From JSON; scores of earlier versions lack fields, which then have their defaults."""
    if text is None:
        return None
    fields = json.loads(text)
    fields["per_window"] = tuple(fields["per_window"])
    return Score(**{name: value for name, value in fields.items() if name in _FIELDS})


def dump_tasks(tasks: tuple[tuple[str, EvaluationTask], ...]) -> str:
    """As JSON."""
    return json.dumps([(stage, task.windows, task.world) for stage, task in tasks])


def load_tasks(text: str) -> tuple[tuple[str, EvaluationTask], ...]:
    """From JSON."""
    return tuple((stage, EvaluationTask(tuple(windows), world)) for stage, windows, world in json.loads(text))
