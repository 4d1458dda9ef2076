"""The listing of candidates: one line each, with what there is to say."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any, Literal

from loop.contracts import Death
from strategy.evolve.archive.database import Current
from strategy.evolve.archive.rows import Candidate

_QUERY = """
WITH last_outcome AS (
    SELECT digest, death, detail FROM outcomes WHERE id IN (SELECT max(id) FROM outcomes GROUP BY digest)),
promoted AS (SELECT DISTINCT digest FROM outcomes AS o WHERE death IS NULL AND NOT EXISTS (
    SELECT 1 FROM outcomes AS r WHERE r.digest = o.digest AND r.id > o.id AND r.detail LIKE 'refused: %')),
stages AS (SELECT digest, max(stage = 'full') AS has_full FROM evaluations
    WHERE stage IN ('smoke', 'short', 'full') AND score IS NOT NULL GROUP BY digest),
last_score AS (
    SELECT max(e.id) AS id, e.digest FROM evaluations AS e JOIN stages USING (digest)
    WHERE e.score IS NOT NULL AND e.stage IN ('smoke', 'short', 'full')
      AND (e.stage = 'full' OR NOT has_full) GROUP BY e.digest)
SELECT c.digest, c.name, c.operator, c.generation, c.island, c.note, c.parents,
    o.death, o.detail, p.digest IS NOT NULL,
    e.ratio, e.objective, e.stage, e.windows, e.world, e.world_key, e.id
FROM candidates AS c
LEFT JOIN last_outcome AS o ON o.digest = c.digest
LEFT JOIN promoted AS p ON p.digest = c.digest
LEFT JOIN last_score AS l ON l.digest = c.digest
LEFT JOIN evaluations AS e ON e.id = l.id
ORDER BY c.rowid DESC
"""


def list_candidates(
    rows: Callable[[str], list[Any]],
    current: Current | None,
    unfinished: AbstractSet[str],
    sort: Literal["best", "new"],
) -> list[Candidate]:
    """The latest first, or the best first."""
    found = [_candidate(row, current, unfinished) for row in rows(_QUERY)]
    if sort == "best":
        found.sort(key=lambda c: (c.ratio is None, c.stage != "full", c.stale, c.ratio or 0.0, c.digest))
    return found


def _candidate(row: Any, current: Current | None, unfinished: AbstractSet[str]) -> Candidate:
    digest, name, operator, generation, island, note, parents, *rest = row
    death, detail, promoted, ratio, objective, stage, windows, world, world_key, number = rest
    if promoted:
        status = "promoted"
    elif death is not None:
        status = "dead"
    else:
        status = "open" if digest in unfinished else "alive"
    return Candidate(
        digest,
        name,
        operator,
        generation,
        island,
        status,
        Death(death) if death is not None else None,
        detail or "",
        ratio,
        objective,
        stage or "",
        bool(stage) and current is not None and not current.has(windows, world, world_key, number),
        note,
        tuple(json.loads(parents)),
    )
