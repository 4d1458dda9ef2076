from __future__ import annotations

import statistics
from collections.abc import Sequence

import pytest

from loop.contracts import Death, Evaluation, EvaluationTask, Observation, Parent, PolicySource
from strategy.evolve.archive import Archive
from strategy.evolve.evolver import Budget, Evolver, EvolverConfig, Stages, StepOutcome
from strategy.evolve.source import make_source
from strategy.evolve.synthesise import BuiltinSynthesiser
from tests.strategy.evolve.worlds import Scripted, SyntheticEvaluator, distance, knobs

STAGES = Stages(
    smoke=EvaluationTask((0,)),
    full=EvaluationTask((0, 1, 2)),
    held_out=EvaluationTask((3,)),
    perturbed=(EvaluationTask((0, 1), world=1), EvaluationTask((2, 3), world=2)),
)
ENDLESS = float("inf")


class Watched(Scripted):
    """Passes everything on, and remembers which parents were offered."""

    def __init__(self, inner: BuiltinSynthesiser) -> None:
        super().__init__()
        self.inner = inner
        self.offered: list[Parent] = []

    def ask(self, parents: Sequence[Parent], obs: Observation | None, count: int) -> list[PolicySource]:
        self.offered += parents
        return self.inner.ask(parents, obs, count)

    def tell(self, candidate: PolicySource, evaluation: Evaluation, parent_objective: float | None) -> None:
        super().tell(candidate, evaluation, parent_objective)
        self.inner.tell(candidate, evaluation, parent_objective)


def run(
    synthesiser: Scripted,
    evaluator: SyntheticEvaluator | None = None,
    archive: Archive | None = None,
    config: EvolverConfig | None = None,
) -> StepOutcome:
    evolver = Evolver(synthesiser, evaluator or SyntheticEvaluator(), archive or Archive(), config)
    return evolver.step(knobs(), (), None, STAGES, Budget(200, ENDLESS))


def left_after_three_steps(seed: int) -> float:
    """What is left of the first policy's distance from the optimum."""
    archive = Archive()
    evolver = Evolver(BuiltinSynthesiser(seed), SyntheticEvaluator(), archive)
    incumbent = knobs()
    for _ in range(3):
        outcome = evolver.step(incumbent, (), None, STAGES, Budget(80, ENDLESS))
        assert outcome.evaluations <= 80
        incumbent = outcome.best or incumbent
    assert archive.lineage(incumbent.digest)[-1].digest == knobs().digest
    promoted = [o for o in archive.outcomes(incumbent.digest) if o.death is None]
    assert len(promoted) == 1
    return distance(incumbent) / distance(knobs())


@pytest.mark.slow
def test_finds_a_better_policy_and_knows_its_ancestors() -> None:
    assert left_after_three_steps(seed=1) < 0.5


@pytest.mark.slow
def test_finds_a_better_policy_from_most_seeds() -> None:
    left = [left_after_three_steps(seed) for seed in (1, 2, 3)]
    assert statistics.median(left) < 0.5, left  # one search in twenty-odd gets stuck


@pytest.mark.slow
def test_same_seed_same_evolution() -> None:
    def best(seed: int) -> str | None:
        evolver = Evolver(BuiltinSynthesiser(seed), SyntheticEvaluator(), Archive())
        found = evolver.step(knobs(), (), None, STAGES, Budget(80, ENDLESS)).best
        return found.source if found else None

    assert best(5) == best(5)


def test_a_worse_candidate_is_never_promoted() -> None:
    archive = Archive()
    worse, slightly = knobs(weight=99.0, limit=1000), knobs(weight=29.9)
    outcome = run(Scripted([worse, slightly]), archive=archive)
    assert outcome.best is None
    assert outcome.deaths == {Death.WORSE: 2}
    assert "incumbent kept" in outcome.reason


@pytest.mark.parametrize(("window", "world"), [(3, 0), (0, 1), (2, 2)])
def test_a_winner_of_the_full_stage_only_is_overfit(window: int, world: int) -> None:
    good = knobs(weight=3.0, limit=64, name="good")

    def judge(policy: PolicySource, at: int, in_world: int) -> float:
        if policy.digest == good.digest and (at, in_world) == (window, world):
            return 1000.0
        return 10.0 + distance(policy)

    archive = Archive()
    outcome = run(Scripted([good]), SyntheticEvaluator(judge), archive)
    assert outcome.best is None
    assert outcome.deaths == {Death.OVERFIT: 1}
    assert archive.outcomes(good.digest)[0].death is Death.OVERFIT


def test_a_gain_within_its_standard_error_is_no_proof() -> None:
    lucky = knobs(weight=3.0, limit=64)
    wins = {(0, 0): 4.0, (3, 0): 9.9, (0, 1): 9.0, (2, 2): 9.0}

    def judge(policy: PolicySource, at: int, in_world: int) -> float:
        return wins.get((at, in_world), 10.9) if policy.digest == lucky.digest else 10.0

    archive = Archive()
    assert run(Scripted([lucky]), SyntheticEvaluator(judge), archive).best is None
    assert "standard error" in archive.outcomes(lucky.digest)[0].detail
    credulous = EvolverConfig(confidence=0.0)
    assert run(Scripted([lucky]), SyntheticEvaluator(judge), config=credulous).best is not None


def test_one_terrible_window_is_too_many() -> None:
    good = knobs(weight=3.0, limit=64)

    def judge(policy: PolicySource, at: int, in_world: int) -> float:
        if policy.digest == good.digest:
            return 3.0 if at != 2 else 19.0
        return 10.0

    assert run(Scripted([good]), SyntheticEvaluator(judge)).best is None
    lenient = EvolverConfig(worst_window=2.0)
    assert run(Scripted([good]), SyntheticEvaluator(judge), config=lenient).best == good


def test_the_next_finalist_gets_its_chance() -> None:
    cheat, honest = knobs(3.0, 64, "cheat"), knobs(4.0, 70, "honest")

    def judge(policy: PolicySource, at: int, in_world: int) -> float:
        return 1000.0 if policy.digest == cheat.digest and in_world else 10.0 + distance(policy)

    assert run(Scripted([cheat, honest]), SyntheticEvaluator(judge)).best == honest


def test_every_death_is_recorded_and_told() -> None:
    slow, broken = knobs(weight=7.0), make_source("import os\n")
    same = make_source(knobs().source.replace("Never.", "It never does.") + "\n# another remark\n")
    hopeless = knobs(weight=0.011)

    def judge(policy: PolicySource, at: int, in_world: int) -> float:
        if policy.digest == slow.digest:
            raise TimeoutError
        return 100.0 if policy.digest == hopeless.digest else 10.0 + distance(policy)

    archive, synthesiser = Archive(), Scripted([slow, broken], [same, hopeless])
    outcome = run(synthesiser, SyntheticEvaluator(judge), archive)
    expected = {
        slow.digest: Death.TIMEOUT,
        broken.digest: Death.STATIC,
        same.digest: Death.DUPLICATE,
        hopeless.digest: Death.WORSE,
    }
    assert outcome.deaths == dict.fromkeys(expected.values(), 1)
    assert {c.digest: e.death for c, e, _ in synthesiser.told} == expected
    for digest, death in expected.items():
        assert digest in archive
        assert [o.death for o in archive.outcomes(digest)] == [death]
        assert archive.outcomes(digest)[0].detail


def test_beaten_in_smoke_costs_one_evaluation_only() -> None:
    hopeless = knobs(weight=0.011)
    evaluator = SyntheticEvaluator(lambda p, w, k: 100.0 if p == hopeless else 10.0)
    run(Scripted([hopeless]), evaluator)
    assert [task for policy, task in evaluator.jobs if policy == hopeless] == [STAGES.smoke]


def test_the_budget_and_the_reserve_for_the_last_stages_hold() -> None:
    for evaluations in (1, 2, 9, 15, 40):
        evaluator = SyntheticEvaluator()
        evolver = Evolver(BuiltinSynthesiser(seed=2), evaluator, Archive())
        outcome = evolver.step(knobs(), (), None, STAGES, Budget(evaluations, ENDLESS))
        assert len(evaluator.jobs) == outcome.evaluations <= max(2, evaluations)


def test_with_nothing_to_prove_the_reserve_is_spent_and_a_late_winner_has_its_turn_later() -> None:
    """24 evaluations: 2 for the incumbent, 16 for losers; with 6, no proof can be begun after a winner."""
    losers = [[knobs(weight=31.0 + i + j) for j in range(4)] for i in range(0, 8, 4)]
    winner = knobs(weight=4.0)
    evaluator, archive = SyntheticEvaluator(), Archive()
    evolver = Evolver(Scripted(*losers, [winner]), evaluator, archive)
    outcome = evolver.step(knobs(), (), None, STAGES, Budget(24, ENDLESS))
    assert outcome.best is None
    assert outcome.evaluations == 20
    assert outcome.deaths == {Death.WORSE: 8}
    assert archive.unfinished() == []
    later = Stages(EvaluationTask((4,)), EvaluationTask((4, 5)), EvaluationTask((3,)))
    assert evolver.step(knobs(), (), None, later, Budget(24, ENDLESS)).best == winner


def test_nothing_is_begun_that_cannot_be_finished() -> None:
    now = 0.0

    def tick() -> None:
        nonlocal now
        now += 1.0  # an evaluation takes a second

    def clock() -> float:
        return now

    for deadline_s in (3.0, 20.0, 60.0):
        now = 0.0
        evaluator = SyntheticEvaluator(on_evaluate=tick)
        evolver = Evolver(BuiltinSynthesiser(seed=2), evaluator, Archive(), clock=clock)
        outcome = evolver.step(knobs(), (), None, STAGES, Budget(10_000, deadline_s))
        assert now <= deadline_s
        if outcome.best is None:
            assert "deadline" in outcome.reason or "time" in outcome.reason


@pytest.mark.slow
def test_the_population_is_scored_again_when_the_windows_move() -> None:
    evaluator = SyntheticEvaluator()
    synthesiser = Watched(BuiltinSynthesiser(seed=3))
    config = EvolverConfig()
    evolver = Evolver(synthesiser, evaluator, Archive(), config)
    evolver.step(knobs(), (), None, STAGES, Budget(60, ENDLESS))
    kept = evolver.population
    assert len(kept) > config.per_cell
    assert [distance(p) for p in kept] == sorted(distance(p) for p in kept)
    later = Stages(EvaluationTask((4,)), EvaluationTask((4, 5)), EvaluationTask((6,)))
    evaluator.jobs.clear()
    synthesiser.offered.clear()
    evolver.step(knobs(), (), None, later, Budget(60, ENDLESS))
    assert all(task.windows[0] >= 4 for _, task in evaluator.jobs)
    scored = {policy.digest for policy, task in evaluator.jobs if task == later.full}
    again = scored & {policy.digest for policy in kept}
    best = {p.digest for p in kept if distance(p) == distance(kept[0])}
    assert best & again  # the most promising at least, or who is as good
    assert len(again) <= 60 * config.rescore_share + 1  # and the incumbent
    assert {p.policy.digest for p in synthesiser.offered} <= scored  # an old score makes no parent
    ratios = {p.policy.digest: p.objective for p in synthesiser.offered}
    objective = {p.digest: 10.0 + distance(p) for p in (*kept, knobs())}
    for digest in again:
        assert ratios.get(digest, 0.0) == pytest.approx(objective[digest] / objective[knobs().digest])


def test_parents_are_ranked_and_can_be_promoted_themselves() -> None:
    better, worse = knobs(weight=4.0, name="better"), knobs(weight=90.0, name="worse")
    synthesiser = Scripted([])
    evolver = Evolver(synthesiser, SyntheticEvaluator(), Archive())
    outcome = evolver.step(knobs(), (worse, better), None, STAGES, Budget(60, ENDLESS))
    assert [p.policy.name for p in synthesiser.parents[0]] == ["better", "knobs", "worse"]
    assert outcome.best == better
    assert outcome.ratio < 1.0


@pytest.mark.parametrize(
    ("window", "world", "stage"), [(0, 0, "smoke"), (2, 0, "full"), (3, 0, "held_out"), (2, 2, "perturbed")]
)
def test_nothing_is_promoted_over_an_incumbent_without_a_score(window: int, world: int, stage: str) -> None:
    works = knobs(weight=4.0)

    def judge(policy: PolicySource, at: int, in_world: int) -> float:
        if policy.digest == knobs().digest and (at, in_world) == (window, world):
            raise TimeoutError
        return 10.0 + distance(policy)

    archive, parent = Archive(), knobs(weight=5.0)
    evolver = Evolver(Scripted([works]), SyntheticEvaluator(judge), archive)
    outcome = evolver.step(knobs(), (parent,), None, STAGES, Budget(200, ENDLESS))
    assert outcome.best is None
    assert f"no score to compare with in the {stage} stage (timeout: too slow)" in outcome.reason
    assert outcome.deaths == {}
    assert archive.outcomes(works.digest) == []


def test_a_step_without_comparison_keeps_the_population() -> None:
    slow = False

    def judge(policy: PolicySource, at: int, in_world: int) -> float:
        if slow and policy.digest == knobs().digest:
            raise TimeoutError
        return 10.0 + distance(policy)

    better = knobs(weight=4.0)
    evolver = Evolver(Scripted([better]), SyntheticEvaluator(judge), Archive())
    evolver.step(knobs(), (), None, STAGES, Budget(200, ENDLESS))
    kept = evolver.population
    assert better in kept
    slow = True
    evolver.forget_scores()
    assert evolver.step(knobs(), (), None, STAGES, Budget(200, ENDLESS)).evaluations == 2
    assert evolver.population == kept


@pytest.mark.slow
def test_an_interrupt_leaves_a_whole_archive() -> None:
    archive, count = Archive(), 0

    def interrupt() -> None:
        nonlocal count
        count += 1
        if count == 9:
            raise KeyboardInterrupt

    evolver = Evolver(BuiltinSynthesiser(seed=2), SyntheticEvaluator(on_evaluate=interrupt), archive)
    with pytest.raises(KeyboardInterrupt):
        evolver.step(knobs(), (), None, STAGES, Budget(100, ENDLESS))
    assert sum(len(archive.evaluations(p.digest)) for p in archive) == 8
    again = Evolver(BuiltinSynthesiser(seed=2), SyntheticEvaluator(), archive)
    outcome = again.step(knobs(), (), None, STAGES, Budget(100, ENDLESS))
    assert outcome.generation == 2
    assert outcome.candidates > 0
