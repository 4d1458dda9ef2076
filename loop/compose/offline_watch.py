"""What is known of a run of off-line evolution while it runs: counts, deaths, the best so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loop.compose.scoring import TwinEvaluator
from loop.contracts import Death, Evaluation, EvaluationTask, PolicySource
from strategy.evolve.archive import Archive


@dataclass(slots=True)
class Watch:
    """What is known while it runs; read by whoever shows it."""

    evaluations: int = 0
    candidates: int = 0
    pending: int = 0
    """Candidates that the synthesiser is still writing."""
    deaths: Counter[Death] = field(default_factory=Counter)
    best_ratio: float = 1.0
    """Best objective on the train windows so far, against the first policy's; not proven yet."""
    champion: PolicySource | None = None
    """Best that was proven."""
    promoted: int = 0
    steps: int = 0
    status: str = "starting"


class WatchedArchive(Archive):
    """An archive that counts what is added, as it is added."""

    def __init__(self, path: str | Path | None = None) -> None:
        super().__init__(path)
        self.watch = Watch()

    def add_outcome(self, digest: str, death: Death | None, detail: str, generation: int) -> None:
        """As Archive.add_outcome."""
        super().add_outcome(digest, death, detail, generation)
        if death is not None:
            self.watch.deaths[death] += 1


class Known:
    """Objectives on the train windows: of this run, and of earlier ones from the archive."""

    def __init__(self, archive: Archive, full: EvaluationTask, world_key: str, first: str) -> None:
        self.full = full
        self._archive = archive
        self._world_key = world_key
        self._first = first
        self._objectives: dict[str, float] = {}

    def learn(self, digest: str, objective: float) -> None:
        """A policy was scored."""
        self._objectives[digest] = objective

    def objective(self, digest: str) -> float | None:
        """None: it has no score."""
        if digest not in self._objectives:
            found = self._archive.find(digest, self.full, self._world_key)
            if found is None or found.score is None or found.death is not None:
                return None
            self._objectives[digest] = found.score.objective
        return self._objectives[digest]

    def ratio(self, digest: str) -> float:
        """Against the first policy's; 1 while one of them is unknown."""
        mine, base = self.objective(digest), self.objective(self._first)
        return mine / base if mine is not None and base else 1.0

    def best_ratio(self) -> float:
        """Of all that the archive holds; 1 when it holds none."""
        best = self._archive.best(self.full, 1, self._world_key)
        return self.ratio(best[0][0].digest) if best else 1.0


class WatchedEvaluator:
    """An Evaluator that counts, and remembers how candidates do on the train windows."""

    def __init__(self, inner: TwinEvaluator, watch: Watch, known: Known) -> None:
        self._inner = inner
        self._watch = watch
        self.known = known

    def evaluate(
        self, jobs: Sequence[tuple[PolicySource, EvaluationTask]]
    ) -> Iterator[tuple[int, Evaluation]]:
        """As TwinEvaluator.evaluate."""
        for index, evaluation in self._inner.evaluate(jobs):
            self._watch.evaluations += 1
            policy, task = jobs[index]
            if task == self.known.full and evaluation.score is not None and evaluation.death is None:
                self.known.learn(policy.digest, evaluation.score.objective)
                self._watch.best_ratio = min(self._watch.best_ratio, self.known.ratio(policy.digest))
            yield index, evaluation
