"""Writing the archive.

SQLite with write-ahead log. Rows are added and never changed, but for a step's, which is completed at its
end; each addition is one transaction, so that a process killed at any moment leaves a whole archive behind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from loop.contracts import Death, Evaluation, EvaluationTask, Exchange, PolicySource
from strategy.evolve.archive.queries import Queries
from strategy.evolve.archive.rows import Placement, dump_score, dump_tasks
from strategy.evolve.archive.schema import open_database


class Archive(Queries):
    """Append-only store of candidates. `path` None: in memory only, for tests.

    May be used from several threads; other processes may read while one writes.

    Raises:
        ArchiveError: the file is no archive, or cannot be written.
    """

    def __init__(self, path: str | Path | None = None, now: Callable[[], float] = time.time) -> None:
        where = str(path) if path is not None else ":memory:"
        super().__init__(open_database(where), where)
        self._now = now

    def add(
        self, policy: PolicySource, normalised: str, generation: int, *, island: int | None = None
    ) -> bool:
        """Record a candidate; False: its digest is there already. `island` None: it was not made by the
        search, but given to it."""
        islands = {policy.digest: island} if island is not None else {}
        return self.add_all([(policy, normalised)], generation, islands)[0]

    def add_all(
        self,
        policies: Sequence[tuple[PolicySource, str]],
        generation: int,
        islands: Mapping[str, int],
    ) -> list[bool]:
        """Record all or none of some (candidate, normalised digest); which of them are new. `islands`: where
        each lives, by digest."""
        with self._transaction():
            return [
                self._execute(
                    "INSERT OR IGNORE INTO candidates VALUES (?,?,?,?,?,?,?,?,?,?)",
                    (
                        *(policy.digest, policy.name, policy.source, normalised, json.dumps(policy.parents)),
                        *(policy.operator, policy.note, generation, self._now(), islands.get(policy.digest)),
                    ),
                ).rowcount
                == 1
                for policy, normalised in policies
            ]

    def add_evaluation(
        self,
        stage: str,
        task: EvaluationTask,
        evaluation: Evaluation,
        generation: int,
        *,
        world_key: str = "",
        ratio: float | None = None,
    ) -> None:
        """Record a score, or the reason why there is none."""
        score = evaluation.score
        row = (
            *(evaluation.digest, stage, json.dumps(task.windows), task.world, generation),
            score.objective if score else None,
            dump_score(score) if score else None,
            *(evaluation.death, evaluation.detail, evaluation.wall_s, self._now(), world_key, ratio),
        )
        self._execute(
            "INSERT INTO evaluations (digest, stage, windows, world, generation, objective, score, death, "
            "detail, wall_s, at_s, world_key, ratio) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
            row,
        )

    def add_outcome(self, digest: str, death: Death | None, detail: str, generation: int) -> None:
        """Record what became of a candidate; `death` None: it was promoted."""
        self._execute(
            "INSERT INTO outcomes (digest, generation, death, detail, at_s) VALUES (?,?,?,?,?)",
            (digest, generation, death, detail, self._now()),
        )

    def add_placements(self, placements: Sequence[Placement]) -> None:
        """Record all or none of some placements."""
        with self._transaction():
            for p in placements:
                self._execute(
                    "INSERT INTO placements (digest, island, generation, ratio, replan_rate, scaling, how) "
                    "VALUES (?,?,?,?,?,?,?)",
                    (p.digest, p.island, p.generation, p.ratio, p.replan_rate, p.scaling, p.how),
                )

    def add_exchange(self, exchange: Exchange) -> None:
        """Record a question to a language model and what came of it."""
        e = exchange
        self._execute(
            "INSERT INTO exchanges (digest, model, prompt, answer, outcome, detail, prompt_tokens, "
            "completion_tokens, usd, wall_s, at_s) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            (
                *(e.digest, e.model, e.prompt, e.answer, e.outcome, e.detail),
                *(e.prompt_tokens, e.completion_tokens, e.usd, e.wall_s, self._now()),
            ),
        )

    def begin_step(
        self,
        generation: int,
        incumbent: str,
        tasks: tuple[tuple[str, EvaluationTask], ...],
        *,
        world_key: str = "",
        regime: str = "",
        budget: int = 0,
    ) -> None:
        """Record that a step has begun: from now on, scores on other tasks are stale."""
        self._execute(
            "INSERT INTO steps (generation, incumbent, tasks, world_key, regime, budget, began_s) "
            "VALUES (?,?,?,?,?,?,?)",
            (generation, incumbent, dump_tasks(tasks), world_key, regime, budget, self._now()),
        )

    def end_step(
        self,
        generation: int,
        *,
        evaluations: int,
        candidates: int,
        best: str | None,
        ratio: float,
        reason: str,
        wall_s: float,
    ) -> None:
        """Complete the record of a step."""
        self._execute(
            "UPDATE steps SET evaluations = ?, candidates = ?, best = ?, ratio = ?, reason = ?, wall_s = ? "
            "WHERE generation = ?",
            (evaluations, candidates, best, ratio, reason, wall_s, generation),
        )

    def forget(self, world_key: str) -> None:
        """The scores of this set-up count no more, e.g. since its world was calibrated anew."""
        self._execute("INSERT INTO forgotten SELECT ?, coalesce(max(id), 0) FROM evaluations", (world_key,))
