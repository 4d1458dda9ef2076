"""Reading what happened: steps, the population, exchanges with language models."""

from __future__ import annotations

from loop.contracts import Exchange
from strategy.evolve.archive.database import Database
from strategy.evolve.archive.rows import Placement, StepRecord, load_tasks


class History(Database):
    """What can be asked of the past."""

    def generation(self) -> int:
        """The last generation recorded; 0 in an empty archive."""
        query = (
            "SELECT max((SELECT coalesce(max(generation), 0) FROM candidates), "
            "(SELECT coalesce(max(generation), 0) FROM steps))"
        )
        return int(self._rows(query)[0][0])

    def steps(self) -> list[StepRecord]:
        """All steps, the oldest first."""
        rows = self._rows(
            "SELECT generation, incumbent, tasks, world_key, regime, budget, began_s, evaluations, "
            "candidates, best, ratio, reason, wall_s FROM steps ORDER BY generation"
        )
        return [StepRecord(g, incumbent, load_tasks(tasks), *rest) for g, incumbent, tasks, *rest in rows]

    def placements(self) -> list[Placement]:
        """All placements, the oldest first."""
        rows = self._rows(
            "SELECT digest, island, generation, ratio, replan_rate, scaling, how FROM placements ORDER BY id"
        )
        return [Placement(*row) for row in rows]

    def exchanges(self, digest: str | None = None) -> list[Exchange]:
        """Questions to language models and what came of them, the oldest first; of one candidate, or all."""
        rows = self._rows(
            "SELECT model, prompt, answer, outcome, detail, digest, prompt_tokens, completion_tokens, usd, "
            "wall_s FROM exchanges WHERE ? IS NULL OR digest = ? ORDER BY id",
            (digest, digest),
        )
        return [Exchange(*row) for row in rows]
