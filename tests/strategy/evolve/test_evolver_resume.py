"""What an evolver takes over from its archive, and what it pays for again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from loop.contracts import Death, EvaluationTask, PolicySource
from strategy.evolve.archive import Archive
from strategy.evolve.evolver import Budget, Evolver, EvolverConfig, Stages
from strategy.evolve.synthesise import BuiltinSynthesiser
from tests.strategy.evolve.worlds import Scripted, SyntheticEvaluator, distance, knobs

STAGES = Stages(
    EvaluationTask((0,)), EvaluationTask((0, 1, 2)), EvaluationTask((3,)), (EvaluationTask((0, 1), world=1),)
)
ENDLESS = float("inf")


def content(archive: Archive) -> list[tuple]:
    """All that is in it, times aside."""
    rows: list[tuple] = [tuple(archive), tuple(archive.outcomes()), tuple(archive.placements())]
    rows += [(p.digest, tuple(archive.evaluations(p.digest))) for p in archive]
    rows += [(s.generation, s.incumbent, s.tasks, s.evaluations, s.best, s.reason) for s in archive.steps()]
    return rows


def evolve(archive: Archive, steps: int, seed: int, key: str = "key") -> Evolver:
    evolver = Evolver(BuiltinSynthesiser(seed), SyntheticEvaluator(), archive, world_key=key)
    for _ in range(steps):
        incumbent = next(iter(archive.champions()), knobs())
        evolver.step(incumbent, (), None, STAGES, Budget(40, ENDLESS))
    return evolver


@pytest.mark.slow
def test_same_seed_same_archive() -> None:
    first, second, other = Archive(), Archive(), Archive()
    evolve(first, 2, seed=4)
    evolve(second, 2, seed=4)
    evolve(other, 2, seed=5)
    assert content(first) == content(second)
    assert content(first) != content(other)


@pytest.mark.slow
def test_the_population_comes_back_from_the_archive() -> None:
    archive = Archive()
    evolver = evolve(archive, 3, seed=1)
    again = Evolver(BuiltinSynthesiser(1), SyntheticEvaluator(), archive, world_key="key")
    assert again.population == evolver.population
    assert len(again.population) > 3
    assert again.generation == 3


@pytest.mark.slow
def test_a_resumed_run_is_deterministic_given_the_archive(tmp_path: Path) -> None:
    with Archive(tmp_path / "a.db") as archive:
        evolve(archive, 2, seed=1)
    shutil.copy(tmp_path / "a.db", tmp_path / "b.db")
    resumed = []
    for name in ("a.db", "b.db"):
        with Archive(tmp_path / name) as archive:
            evolve(archive, 2, seed=9)
            resumed.append(content(archive))
    assert resumed[0] == resumed[1]


def interrupted(archive: Archive, at: int, key: str) -> list[PolicySource]:
    """Interrupt a step at its n-th evaluation; what was asked for until then."""
    count = 0

    def interrupt() -> None:
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt

    batch = [knobs(weight=29.0 - i, limit=400 - 10 * i, name=f"c{i}") for i in range(4)]
    evaluator = SyntheticEvaluator(on_evaluate=interrupt)
    evolver = Evolver(Scripted(batch), evaluator, archive, world_key=key)
    with pytest.raises(KeyboardInterrupt):
        evolver.step(knobs(), (), None, STAGES, Budget(60, ENDLESS))
    return batch


@pytest.mark.parametrize("at", range(3, 11))
def test_candidates_that_were_cut_off_are_taken_up_and_what_is_paid_is_not_paid_again(at: int) -> None:
    archive = Archive()
    batch = interrupted(archive, at, "key")
    assert archive.unfinished() == batch
    assert archive.spent() == at - 1
    assert archive.steps()[0].wall_s is None
    evaluator = SyntheticEvaluator()
    outcome = Evolver(Scripted(), evaluator, archive, world_key="key").step(
        knobs(), (), None, STAGES, Budget(60, ENDLESS)
    )
    assert outcome.resumed == len(batch)
    assert outcome.reused == at - 1
    assert outcome.generation == 2
    assert archive.unfinished() == []
    assert len(evaluator.jobs) == outcome.evaluations == archive.spent(2)
    paid = [(e.digest, e.task) for p in archive for e in archive.evaluations(p.digest)]
    assert len(paid) == len(set(paid))
    assert outcome.best == min(batch, key=distance)


def test_scores_of_another_set_up_or_of_none_are_not_taken_over() -> None:
    for first, second in (("key", "other"), ("", "")):
        archive = Archive()
        interrupted(archive, 8, first)
        evolver = Evolver(Scripted(), SyntheticEvaluator(), archive, world_key=second)
        assert evolver.step(knobs(), (), None, STAGES, Budget(60, ENDLESS)).reused == 0


def test_forgotten_scores_stay_forgotten_after_a_restart() -> None:
    archive = Archive()
    evolver = evolve(archive, 1, seed=2)
    evolver.forget_scores()
    assert all(e.stale for e in archive.evaluations(knobs().digest))
    evaluator = SyntheticEvaluator()
    again = Evolver(Scripted(), evaluator, archive, world_key="key")
    assert again.step(knobs(), (), None, STAGES, Budget(40, ENDLESS)).reused == 0
    assert (knobs(), STAGES.full) in evaluator.jobs


def test_a_timeout_may_be_the_machines_and_is_tried_again() -> None:
    slow = True

    def judge(policy: PolicySource, window: int, world: int) -> float:
        if slow and policy.name == "late":
            raise TimeoutError
        return 10.0 + distance(policy)

    archive, late = Archive(), knobs(weight=4.0, name="late")
    evolver = Evolver(Scripted(), SyntheticEvaluator(judge), archive, world_key="key")
    assert evolver.step(knobs(), (late,), None, STAGES, Budget(40, ENDLESS)).best is None
    assert archive.evaluations(late.digest)[0].evaluation.death is Death.TIMEOUT
    slow = False
    for resumed in (evolver, Evolver(Scripted(), SyntheticEvaluator(judge), archive, world_key="key")):
        assert resumed.step(knobs(), (late,), None, STAGES, Budget(40, ENDLESS)).best == late


def test_scores_are_stale_once_the_windows_have_moved() -> None:
    archive = Archive()
    evolve(archive, 1, seed=2)
    assert not any(e.stale for e in archive.evaluations(knobs().digest))
    later = Stages(EvaluationTask((4,)), EvaluationTask((4, 5)))
    evolver = Evolver(Scripted(), SyntheticEvaluator(), archive, world_key="key")
    evolver.step(knobs(), (), None, later, Budget(6, ENDLESS))
    stale = {e.task: e.stale for e in archive.evaluations(knobs().digest)}
    assert stale[STAGES.full]
    assert not stale[later.full]


def test_a_refused_champion_leaves_the_population_and_says_why() -> None:
    archive, better = Archive(), knobs(weight=4.0)
    evolver = Evolver(Scripted([better]), SyntheticEvaluator(), archive, EvolverConfig())
    assert evolver.step(knobs(), (), None, STAGES, Budget(40, ENDLESS)).best == better
    assert archive.champions() == [better]
    evolver.refuse(better, "scores differently apart")
    assert better not in evolver.population
    assert archive.champions() == []
    assert [c.status for c in archive.candidates() if c.digest == better.digest] == ["dead"]
    assert archive.outcomes(better.digest)[-1].death is Death.OVERFIT
    assert evolver.step(knobs(), (), None, STAGES, Budget(40, ENDLESS)).best is None
    again = Evolver(Scripted(), SyntheticEvaluator(), archive)
    assert better not in again.population
