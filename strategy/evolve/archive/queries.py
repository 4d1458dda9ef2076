"""Reading candidates, and what became of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from loop.contracts import Death, PolicySource
from strategy.evolve.archive.history import History
from strategy.evolve.archive.listing import list_candidates
from strategy.evolve.archive.rows import POLICY_COLUMNS, REFUSED, ArchivedOutcome, Candidate, policy_of
from strategy.evolve.archive.schema import ArchiveError
from strategy.evolve.archive.scores import Scores

_OPEN = """
    FROM candidates AS c WHERE c.island IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM outcomes WHERE digest = c.digest)
    AND NOT EXISTS (SELECT 1 FROM placements AS p JOIN steps AS s USING (generation)
                    WHERE p.digest = c.digest AND s.wall_s IS NOT NULL)
"""
"""Candidates whose cascade was cut off: nothing became of them, nor did they take their place in a step that
came to its end."""


class Queries(Scores, History):
    """What can be asked of an archive."""

    def get(self, digest: str) -> PolicySource:
        """A candidate by its digest, or by the first digits of it.

        Raises:
            ArchiveError: none or several match.
        """
        rows = self._rows(
            f"SELECT {POLICY_COLUMNS} FROM candidates WHERE digest LIKE ?",  # noqa: S608  our own columns
            (digest.replace("%", "").replace("_", "") + "%",),
        )
        if len(rows) != 1:
            raise ArchiveError(f"{len(rows) or 'no'} candidates match {digest!r} in {self._where}")
        return policy_of(rows[0])

    def __contains__(self, digest: str) -> bool:
        return bool(self._rows("SELECT 1 FROM candidates WHERE digest = ?", (digest,)))

    def count(self) -> int:
        """Candidates."""
        return int(self._rows("SELECT count(*) FROM candidates")[0][0])

    def __iter__(self) -> Iterator[PolicySource]:
        """All candidates, the oldest first."""
        return map(policy_of, self._rows(f"SELECT {POLICY_COLUMNS} FROM candidates ORDER BY rowid"))  # noqa: S608

    def candidates(
        self,
        limit: int | None = None,
        sort: Literal["best", "new"] = "best",
        status: str | None = None,
    ) -> list[Candidate]:
        """A listing. `best`: the least ratio first, those of the present windows before stale ones; `new`:
        the latest first. `status`: only those of this status, or of this death."""
        unfinished = {p.digest for p in self.unfinished()}
        found = list_candidates(self._rows, self._current(), unfinished, sort)
        return [c for c in found if status is None or status in (c.status, c.death)][:limit]

    def unfinished(self) -> list[PolicySource]:
        """Candidates whose cascade was cut off, the oldest first."""
        return [policy_of(row) for row in self._rows(f"SELECT {POLICY_COLUMNS} {_OPEN} ORDER BY rowid")]

    def islands(self) -> dict[str, int]:
        """The island on which each candidate of the search was born, the oldest first."""
        query = "SELECT digest, island FROM candidates WHERE island IS NOT NULL ORDER BY rowid"
        return dict(self._rows(query))

    def identities(self) -> dict[str, str]:
        """The first candidate of each normalised digest: {normalised: digest}."""
        return dict(self._rows("SELECT normalised, digest FROM candidates ORDER BY rowid DESC"))

    def normalised(self) -> set[str]:
        """The normalised digests of all candidates."""
        return set(self.identities())

    def children(self, digest: str) -> list[PolicySource]:
        """Candidates that were made from this one, the oldest first."""
        query = f"SELECT {POLICY_COLUMNS} FROM candidates WHERE parents LIKE ? ORDER BY rowid"  # noqa: S608
        rows = self._rows(query, (f'%"{digest}"%',))
        return [p for p in map(policy_of, rows) if digest in p.parents]

    def edges(self) -> list[tuple[str, str]]:
        """(parent, child) of all candidates; a parent need not be in the archive."""
        rows = self._rows("SELECT digest, parents FROM candidates ORDER BY rowid")
        return [(parent, digest) for digest, parents in rows for parent in json.loads(parents)]

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

    def outcomes(self, digest: str | None = None) -> list[ArchivedOutcome]:
        """What became of a candidate, or of all, the oldest first."""
        rows = self._rows(
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

    def champions(self, regime: str | None = None) -> list[PolicySource]:
        """What was promoted and not refused since, the latest first, each once; with `regime`, in steps of
        that regime."""
        rows = self._rows(
            "SELECT o.digest FROM outcomes AS o LEFT JOIN steps AS s ON s.generation = o.generation "
            "WHERE o.death IS NULL AND (? IS NULL OR s.regime = ?) AND NOT EXISTS (SELECT 1 FROM outcomes "
            "AS r WHERE r.digest = o.digest AND r.id > o.id AND r.detail LIKE ?) ORDER BY o.id DESC",
            (regime, regime, f"{REFUSED}%"),
        )
        return [self.get(digest) for digest in dict.fromkeys(row[0] for row in rows)]
