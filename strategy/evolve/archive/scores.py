"""Reading scores. A score belongs to exactly its windows, its world and its set-up."""

from __future__ import annotations

import json

from loop.contracts import Death, Evaluation, EvaluationTask, PolicySource, Score
from strategy.evolve.archive.database import Database, windows_of
from strategy.evolve.archive.rows import (
    POLICY_COLUMNS,
    ArchivedEvaluation,
    FrontPoint,
    load_score,
    policy_of,
)


class Scores(Database):
    """What can be asked of scores."""

    def evaluations(self, digest: str) -> list[ArchivedEvaluation]:
        """All scores of a candidate, the oldest first."""
        current = self._current()
        return [
            ArchivedEvaluation(
                digest,
                stage,
                EvaluationTask(tuple(json.loads(windows)), world),
                generation,
                Evaluation(digest, load_score(score), Death(death) if death else None, detail, wall_s),
                world_key,
                ratio,
                current is not None and not current.has(windows, world, world_key, number),
            )
            for stage, windows, world, generation, score, death, detail, wall_s, world_key, ratio, number in (
                self._rows(
                    "SELECT stage, windows, world, generation, score, death, detail, wall_s, world_key, "
                    "ratio, id FROM evaluations WHERE digest = ? ORDER BY id",
                    (digest,),
                )
            )
        ]

    def find(self, digest: str, task: EvaluationTask, world_key: str) -> Evaluation | None:
        """The last evaluation of exactly this policy on exactly this task in this set-up that still counts."""
        rows = self._rows(
            "SELECT score, death, detail, wall_s FROM evaluations WHERE digest = ? AND windows = ? "
            "AND world = ? AND world_key = ? AND id > ? ORDER BY id DESC LIMIT 1",
            (digest, windows_of(task), task.world, world_key, self._forgotten(world_key)),
        )
        if not rows:
            return None
        score, death, detail, wall_s = rows[0]
        return Evaluation(digest, load_score(score), Death(death) if death else None, detail, wall_s)

    def fingerprints(self, task: EvaluationTask, world_key: str) -> dict[str, str]:
        """What was done on this task in this set-up, and who did it first: {fingerprint: digest}."""
        rows = self._rows(
            "SELECT digest, score FROM evaluations WHERE windows = ? AND world = ? AND world_key = ? "
            "AND id > ? AND score IS NOT NULL AND death IS NULL ORDER BY id DESC",
            (windows_of(task), task.world, world_key, self._forgotten(world_key)),
        )
        scores = ((digest, load_score(text)) for digest, text in rows)
        return {s.fingerprint: digest for digest, s in scores if s is not None and s.fingerprint}

    def last_ratio(self, digest: str) -> float | None:
        """The last ratio in the full stage, of whatever windows: a hint whom to score again, no score."""
        rows = self._rows(
            "SELECT ratio FROM evaluations WHERE digest = ? AND stage = 'full' AND ratio IS NOT NULL "
            "ORDER BY id DESC LIMIT 1",
            (digest,),
        )
        return float(rows[0][0]) if rows else None

    def spent(self, generation: int | None = None) -> int:
        """Evaluations paid for, in one step or in all."""
        query = "SELECT count(*) FROM evaluations WHERE generation = coalesce(?, generation)"
        return int(self._rows(query, (generation,))[0][0])

    def best(
        self, task: EvaluationTask, count: int = 1, world_key: str | None = None
    ) -> list[tuple[PolicySource, Score]]:
        """The candidates with the least objective on exactly this task: scores of other windows or worlds
        do not compare. `world_key` None: that of the last step."""
        scores = sorted(self._scores(task, world_key), key=lambda item: (item[1].objective, item[0]))
        return [(self._policy(digest), score) for digest, score in scores[:count]]

    def front(self, task: EvaluationTask, world_key: str | None = None) -> list[FrontPoint]:
        """The Pareto front on exactly this task: policies that no other beats in objective, goodput,
        device-hours and joules together; the least objective first."""
        scores = sorted(self._scores(task, world_key), key=lambda item: (item[1].objective, item[0]))
        points = [(digest, score, _aims(score)) for digest, score in scores]
        return [
            FrontPoint(self._policy(digest), score)
            for digest, score, mine in points
            if not any(_dominates(theirs, mine) for _, _, theirs in points)
        ]

    def _scores(self, task: EvaluationTask, world_key: str | None) -> list[tuple[str, Score]]:
        current = self._current()
        key = world_key if world_key is not None else current.world_key if current is not None else ""
        rows = self._rows(
            "SELECT digest, score FROM evaluations WHERE windows = ? AND world = ? AND world_key = ? AND id > ? "
            "AND score IS NOT NULL AND death IS NULL GROUP BY digest HAVING id = max(id)",
            (windows_of(task), task.world, key, self._forgotten(key)),
        )
        return [(digest, score) for digest, text in rows if (score := load_score(text)) is not None]

    def _policy(self, digest: str) -> PolicySource:
        query = f"SELECT {POLICY_COLUMNS} FROM candidates WHERE digest = ?"  # noqa: S608  our own columns
        return policy_of(self._rows(query, (digest,))[0])


def _aims(score: Score) -> tuple[float, float, float, float]:
    """All to be lowered."""
    return score.objective, -score.goodput, score.device_hours, score.joules


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))
