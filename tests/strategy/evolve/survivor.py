"""An evolution that may be killed at any moment: what it did stands in a ledger beside its archive."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from loop.contracts import Evaluation, EvaluationTask, Observation, Parent, PolicySource, SynthesisCost
from strategy.evolve.archive import Archive
from strategy.evolve.evolver import Budget, Evolver, EvolverConfig, Stages
from strategy.evolve.synthesise import BuiltinSynthesiser
from tests.strategy.evolve.worlds import SyntheticEvaluator, distance, knobs

WORLD = "synthetic"
GOAL = 0.4
"""Distance from the optimum; it begins at 4.4."""
BEAT_S = 0.004
"""Between the ledger and the archive: so that kills fall there too."""


class Ledger:
    """Lines that are on disk, as far as a kill goes, once `write` has returned."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, *words: str) -> None:
        os.write(self._file, (" ".join(words) + "\n").encode())


class Asked:
    """A synthesiser whose answers are booked before the evolver has them."""

    def __init__(self, inner: BuiltinSynthesiser, ledger: Ledger) -> None:
        self._inner = inner
        self._ledger = ledger
        self.pending = 0
        self.cost = SynthesisCost()

    def ask(self, parents: Sequence[Parent], obs: Observation | None, count: int) -> list[PolicySource]:
        found = self._inner.ask(parents, obs, count)
        self._ledger.write("asked", *(c.digest for c in found))
        time.sleep(BEAT_S)
        return found

    def tell(self, candidate: PolicySource, evaluation: Evaluation, parent_objective: float | None) -> None:
        self._inner.tell(candidate, evaluation, parent_objective)

    def close(self) -> None:
        self._inner.close()


class Scored(SyntheticEvaluator):
    """An evaluator whose scores are booked before the evolver has them."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(lambda policy, window, world: 10.0 + distance(policy) + 0.01 * (window % 3))
        self._ledger = ledger

    def evaluate(
        self, jobs: Sequence[tuple[PolicySource, EvaluationTask]]
    ) -> Iterator[tuple[int, Evaluation]]:
        for index, evaluation in super().evaluate(jobs):
            policy, task = jobs[index]
            windows = ",".join(map(str, task.windows))
            self._ledger.write("scored", policy.digest, windows, str(task.world))
            time.sleep(BEAT_S)
            yield index, evaluation


def stages_at(generation: int) -> Stages:
    """Every third step, the windows move."""
    first = 4 * (generation // 3)
    return Stages(
        EvaluationTask((first,)),
        EvaluationTask((first, first + 1, first + 2)),
        EvaluationTask((first + 3,)),
        (EvaluationTask((first, first + 1), world=1),),
    )


def evolve(archive_path: Path, ledger_path: Path, seed: int, done: Callable[[PolicySource], bool]) -> None:
    """Resume, and go on until `done(incumbent)`; for one step at least, which takes up what was cut off."""
    archive, ledger = Archive(archive_path), Ledger(ledger_path)
    synthesiser = Asked(BuiltinSynthesiser(seed * 1000 + archive.generation()), ledger)
    evolver = Evolver(synthesiser, Scored(ledger), archive, EvolverConfig(batch=3), world_key=WORLD)
    incumbent = next(iter(archive.champions()), knobs())
    while True:
        stages = stages_at(evolver.generation + 1)
        outcome = evolver.step(incumbent, (), None, stages, Budget(20, float("inf")))
        incumbent = outcome.best or incumbent
        if done(incumbent):
            break
    archive.close()
