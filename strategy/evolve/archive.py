"""The archive: every candidate that ever was, with its parents, its scores and what became of it.

SQLite with write-ahead log. Rows are added and never changed; each addition is one transaction, so that a
process killed at any moment leaves a whole archive behind.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loop.contracts import Death, Evaluation, EvaluationTask, PolicySource, Score

_SCHEMA = """
CREATE TABLE IF NOT EXISTS candidates (
    digest TEXT PRIMARY KEY, name TEXT NOT NULL, source TEXT NOT NULL, normalised TEXT NOT NULL,
    parents TEXT NOT NULL, operator TEXT NOT NULL, note TEXT NOT NULL,
    generation INTEGER NOT NULL, at_s REAL NOT NULL);
CREATE TABLE IF NOT EXISTS evaluations (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL REFERENCES candidates, stage TEXT NOT NULL,
    windows TEXT NOT NULL, world INTEGER NOT NULL, generation INTEGER NOT NULL,
    objective REAL, score TEXT, death TEXT, detail TEXT NOT NULL, wall_s REAL NOT NULL, at_s REAL NOT NULL);
CREATE TABLE IF NOT EXISTS outcomes (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL REFERENCES candidates, generation INTEGER NOT NULL,
    death TEXT, detail TEXT NOT NULL, at_s REAL NOT NULL);
CREATE INDEX IF NOT EXISTS evaluations_by_digest ON evaluations (digest);
CREATE INDEX IF NOT EXISTS outcomes_by_digest ON outcomes (digest);
"""


class ArchiveError(ValueError):
    """The archive cannot be opened, or holds no such candidate."""


@dataclass(frozen=True, slots=True)
class ArchivedEvaluation:
    """One row of scores."""

    digest: str
    stage: str
    task: EvaluationTask
    generation: int
    evaluation: Evaluation


@dataclass(frozen=True, slots=True)
class ArchivedOutcome:
    """What became of a candidate; `death` None: it lived on."""

    digest: str
    generation: int
    death: Death | None
    detail: str


class Archive:
    """Append-only store of candidates. `path` None: in memory only, for tests.

    Raises:
        ArchiveError: the file is no archive, or cannot be written.
    """

    def __init__(self, path: str | Path | None = None, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._where = str(path) if path is not None else ":memory:"
        try:
            self._db = sqlite3.connect(self._where, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA busy_timeout=10000")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise ArchiveError(f"cannot open the archive {self._where}: {error}") from error

    def add(self, policy: PolicySource, normalised: str, generation: int) -> bool:
        """Record a candidate; False: its digest is there already."""
        row = (
            *(policy.digest, policy.name, policy.source, normalised, json.dumps(policy.parents)),
            *(policy.operator, policy.note, generation, self._now()),
        )
        cursor = self._db.execute("INSERT OR IGNORE INTO candidates VALUES (?,?,?,?,?,?,?,?,?)", row)
        return cursor.rowcount == 1

    def add_evaluation(
        self, stage: str, task: EvaluationTask, evaluation: Evaluation, generation: int
    ) -> None:
        """Record a score, or the reason why there is none."""
        score = evaluation.score
        row = (
            *(evaluation.digest, stage, json.dumps(task.windows), task.world, generation),
            score.objective if score else None,
            _dump(score) if score else None,
            *(evaluation.death, evaluation.detail, evaluation.wall_s, self._now()),
        )
        self._db.execute(
            "INSERT INTO evaluations (digest, stage, windows, world, generation, objective, score, death, "
            "detail, wall_s, at_s) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            row,
        )

    def add_outcome(self, digest: str, death: Death | None, detail: str, generation: int) -> None:
        """Record what became of a candidate."""
        self._db.execute(
            "INSERT INTO outcomes (digest, generation, death, detail, at_s) VALUES (?,?,?,?,?)",
            (digest, generation, death, detail, self._now()),
        )

    def get(self, digest: str) -> PolicySource:
        """A candidate by its digest, or by the first digits of it.

        Raises:
            ArchiveError: none or several match.
        """
        rows = self._db.execute(
            "SELECT name, source, digest, parents, operator, note FROM candidates WHERE digest LIKE ?",
            (digest.replace("%", "").replace("_", "") + "%",),
        ).fetchall()
        if len(rows) != 1:
            raise ArchiveError(f"{len(rows) or 'no'} candidates match {digest!r} in {self._where}")
        return _policy(rows[0])

    def __contains__(self, digest: str) -> bool:
        return self._db.execute("SELECT 1 FROM candidates WHERE digest = ?", (digest,)).fetchone() is not None

    def count(self) -> int:
        """Candidates."""
        return int(self._db.execute("SELECT count(*) FROM candidates").fetchone()[0])

    def __iter__(self) -> Iterator[PolicySource]:
        """All candidates, the oldest first."""
        query = "SELECT name, source, digest, parents, operator, note FROM candidates ORDER BY rowid"
        return map(_policy, self._db.execute(query).fetchall())

    def normalised(self) -> set[str]:
        """The normalised digests of all candidates."""
        return {row[0] for row in self._db.execute("SELECT normalised FROM candidates")}

    def generation(self) -> int:
        """The last generation recorded; 0 in an empty archive."""
        return int(self._db.execute("SELECT coalesce(max(generation), 0) FROM candidates").fetchone()[0])

    def evaluations(self, digest: str) -> list[ArchivedEvaluation]:
        """All scores of a candidate, the oldest first."""
        rows = self._db.execute(
            "SELECT stage, windows, world, generation, score, death, detail, wall_s FROM evaluations "
            "WHERE digest = ? ORDER BY id",
            (digest,),
        )
        return [
            ArchivedEvaluation(
                digest,
                stage,
                EvaluationTask(tuple(json.loads(windows)), world),
                generation,
                Evaluation(digest, _load(score), Death(death) if death else None, detail, wall_s),
            )
            for stage, windows, world, generation, score, death, detail, wall_s in rows
        ]

    def outcomes(self, digest: str | None = None) -> list[ArchivedOutcome]:
        """What became of a candidate, or of all, the oldest first."""
        rows = self._db.execute(
            "SELECT digest, generation, death, detail FROM outcomes WHERE digest = coalesce(?, digest) "
            "ORDER BY id",
            (digest,),
        )
        return [
            ArchivedOutcome(d, g, Death(death) if death else None, detail) for d, g, death, detail in rows
        ]

    def deaths(self) -> Counter[Death]:
        """How many candidates died of what."""
        return Counter(outcome.death for outcome in self.outcomes() if outcome.death is not None)

    def lineage(self, digest: str) -> list[PolicySource]:
        """A candidate and all its ancestors that the archive holds, the candidate first, by distance."""
        first = self.get(digest)
        found = {first.digest: first}
        todo = list(first.parents)
        while todo:
            parent = todo.pop(0)
            if parent not in found and parent in self:
                found[parent] = self.get(parent)
                todo += found[parent].parents
        return list(found.values())

    def best(self, task: EvaluationTask, count: int = 1) -> list[tuple[PolicySource, Score]]:
        """The candidates with the least objective on exactly this task: scores of other windows or worlds
        do not compare."""
        rows = self._db.execute(
            "SELECT digest, score FROM evaluations WHERE windows = ? AND world = ? AND score IS NOT NULL "
            "GROUP BY digest HAVING id = max(id) ORDER BY objective, digest LIMIT ?",
            (json.dumps(task.windows), task.world, count),
        ).fetchall()
        return [(self.get(digest), score) for digest, text in rows if (score := _load(text)) is not None]

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _policy(row: tuple[str, str, str, str, str, str]) -> PolicySource:
    name, source, digest, parents, operator, note = row
    return PolicySource(name, source, digest, tuple(json.loads(parents)), operator, note)


_FIELDS = tuple(Score.__dataclass_fields__)


def _dump(score: Score) -> str:
    return json.dumps({name: getattr(score, name) for name in _FIELDS})


def _load(text: str | None) -> Score | None:
    if text is None:
        return None
    fields = json.loads(text)
    fields["per_window"] = tuple(fields["per_window"])
    return Score(**fields)
