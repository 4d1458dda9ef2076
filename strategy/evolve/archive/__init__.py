"""The archive: every candidate that ever was, with its parents, its scores and what became of it.

`Archive` writes and reads one SQLite file; `rows` holds the values that come out of it, `schema` the tables
and how files of earlier versions are brought up to date.
"""

from strategy.evolve.archive.rows import (
    REFUSED,
    ArchivedEvaluation,
    ArchivedOutcome,
    Candidate,
    FrontPoint,
    Placement,
    StepRecord,
)
from strategy.evolve.archive.schema import ArchiveError
from strategy.evolve.archive.store import Archive

__all__ = [
    "REFUSED",
    "Archive",
    "ArchiveError",
    "ArchivedEvaluation",
    "ArchivedOutcome",
    "Candidate",
    "FrontPoint",
    "Placement",
    "StepRecord",
]
