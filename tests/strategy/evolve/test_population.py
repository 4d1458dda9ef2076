from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from loop.contracts import EvaluationTask, Observation, Parent, PolicySource
from strategy.evolve.archive import Archive, Placement
from strategy.evolve.evolver import Budget, Evolver, EvolverConfig, Stages
from strategy.evolve.population import Population, select
from strategy.evolve.source import make_source
from tests.strategy.evolve.worlds import Scripted, Stepping, SyntheticEvaluator, distance, knobs

STAGES = Stages(EvaluationTask((0,)), EvaluationTask((0, 1)))
ENDLESS = float("inf")


def put(
    population: Population,
    name: str,
    ratio: float,
    *,
    island: int = 0,
    generation: int = 1,
    behaviour: tuple[float, float] = (0.0, 0.0),
    how: str = "born",
) -> PolicySource:
    policy = make_source(f"# {name}\n", name=name)
    population.place(policy, Placement(policy.digest, island, generation, ratio, *behaviour, how))
    return policy


def names(members: Sequence) -> list[str]:
    return [m.policy.name for m in members]


def test_a_cell_keeps_its_best_and_unlike_policies_survive() -> None:
    population = Population(islands=1, bins=4, per_cell=2)
    for name, ratio in (("a", 0.9), ("b", 0.8), ("c", 1.0), ("d", 0.85)):
        put(population, name, ratio)
    put(population, "restless", 1.4, behaviour=(1.0, 0.6))
    put(population, "next", 1.5, behaviour=(0.9, 0.7))
    put(population, "lost", 1.6, behaviour=(0.8, 0.8))
    assert names(population.fresh(0)) == ["b", "d", "restless", "next"]


@pytest.mark.parametrize(
    ("behaviour", "same"),
    [
        ((0.2, 0.0), True),
        ((0.3, 0.0), False),
        ((0.0, 0.05), True),
        ((0.0, 0.07), False),
        ((9.0, -1.0), False),
    ],
)
def test_cells_divide_behaviour(behaviour: tuple[float, float], *, same: bool) -> None:
    """Of the share rearranged, cells are narrower where it is small."""
    population = Population(islands=1, bins=4, per_cell=1)
    put(population, "a", 0.9)
    put(population, "b", 0.8, behaviour=behaviour)
    assert len(population.fresh(0)) == (1 if same else 2)


def test_a_new_score_replaces_the_old_one_and_its_cell() -> None:
    population = Population(islands=1, bins=4, per_cell=1)
    put(population, "a", 0.9)
    put(population, "a", 1.1, generation=2, behaviour=(1.0, 1.0), how="rescored")
    assert [(m.policy.name, m.ratio, m.generation) for m in population.fresh(0)] == [("a", 1.1, 2)]
    put(population, "a", math.inf, generation=3)
    assert population.ranked() == []


def test_old_scores_neither_oust_nor_count() -> None:
    population = Population(islands=1, bins=4, per_cell=1)
    put(population, "old", 0.5)
    population.begin(2)
    assert population.fresh(0) == []
    assert names(population.stale(0)) == ["old"]
    put(population, "new", 0.99, generation=2)
    assert names(population.fresh(0)) == ["new"]
    assert names(population.stale(0)) == ["old"]
    put(population, "old", 1.2, generation=2, how="rescored")
    assert names(population.fresh(0)) == ["new"]  # it lost, now that both have a score
    assert population.stale(0) == []


def test_the_best_migrate_in_a_ring_and_stay_where_they_are() -> None:
    population = Population(islands=3, bins=4, per_cell=2)
    for island in range(3):
        put(population, f"best-{island}", 0.8, island=island)
        put(population, f"next-{island}", 0.9, island=island)
    moves = population.migrations(1)
    assert [(p.name, m.island, m.how) for p, m in moves] == [
        ("best-0", 1, "migrated"),
        ("best-1", 2, "migrated"),
        ("best-2", 0, "migrated"),
    ]
    for policy, placement in moves:
        population.place(policy, placement)
    assert population.homes(moves[0][0].digest) == [0, 1]
    again = {(p.name, m.island) for p, m in population.migrations(1)}
    assert not again & {(p.name, m.island) for p, m in moves}  # these are there already
    assert Population(islands=1, bins=4, per_cell=2).migrations(1) == []


def test_selection_is_by_rank_with_a_share_at_random() -> None:
    ranked = [(make_source(f"# {i}\n"), float(i)) for i in range(40)]
    drawn: Counter[float] = Counter()
    for seed in range(200):
        chosen = [ratio for _, ratio in select(ranked, 8, 0.25, random.Random(seed))]
        assert chosen == sorted(chosen)
        assert chosen[:6] == [0, 1, 2, 3, 4, 5]
        assert len(set(chosen)) == 8
        drawn.update(chosen[6:])
    assert len(drawn) == 34  # every other had its turn
    assert [r for _, r in select(ranked, 8, 0.0, random.Random(1))] == [float(i) for i in range(8)]
    assert select(ranked[:3], 8, 0.25, random.Random(1)) == ranked[:3]


class Breeding(Scripted):
    """Makes a child of the best parent that is no guest, else of the first; remembers whom it was offered."""

    def __init__(self, guests: set[str]) -> None:
        super().__init__()
        self.guests = guests
        self.made: list[tuple[str, str]] = []

    def ask(self, parents: Sequence[Parent], obs: Observation | None, count: int) -> list[PolicySource]:
        self.parents.append(parents)
        own = [p.policy for p in parents if p.policy.digest not in self.guests]
        parent = own[0] if own else parents[0].policy
        number = len(self.made)
        child = make_source(
            knobs(29.5 - 0.1 * number, 499 - number).source, parents=(parent.digest,), operator="edit"
        )
        self.made.append((parent.digest, child.digest))
        return [child]


def test_islands_take_turns_and_children_live_where_their_parents_do() -> None:
    archive, guests = Archive(), {knobs().digest}
    synthesiser = Breeding(guests)
    config = EvolverConfig(batch=1, migrate_every=0)
    Evolver(synthesiser, SyntheticEvaluator(), archive, config).step(
        knobs(), (), None, STAGES, Budget(32, ENDLESS)
    )
    islands = archive.islands()
    counts = Counter(islands[child] for _, child in synthesiser.made)
    assert set(counts) == {0, 1, 2}
    assert max(counts.values()) - min(counts.values()) <= 1
    for parent, child in synthesiser.made:
        assert parent in guests or islands[parent] == islands[child]
    for turn, parents in enumerate(synthesiser.parents):
        own = {p.policy.digest for p in parents} - guests
        assert {islands[digest] for digest in own} <= {turn % 3}


def test_migration_brings_the_best_to_the_next_island() -> None:
    archive = Archive()
    config = EvolverConfig(batch=1, migrate_every=2)
    evolver = Evolver(Breeding({knobs().digest}), SyntheticEvaluator(), archive, config)
    evolver.step(knobs(), (), None, STAGES, Budget(20, ENDLESS))
    assert not [p for p in archive.placements() if p.how == "migrated"]
    evolver.step(knobs(), (), None, STAGES, Budget(20, ENDLESS))
    moved = [p for p in archive.placements() if p.how == "migrated"]
    born = archive.islands()
    assert len(moved) == 3
    for placement in moved:
        if placement.digest in born:
            assert placement.island == (born[placement.digest] + 1) % 3


def test_policies_that_behave_otherwise_are_kept_as_parents() -> None:
    restless = knobs(weight=90.0, name="restless")
    synthesiser = Scripted(
        [restless], [knobs(29.0 - i) for i in range(4)], [knobs(24.0 - i) for i in range(4)]
    )
    evaluator = SyntheticEvaluator(behave=lambda p: (1.0, 0.8) if p == restless else (0.0, 0.0))
    config = EvolverConfig(islands=1, per_cell=1)
    evolver = Evolver(synthesiser, evaluator, Archive(), config)
    evolver.step(knobs(), (), None, STAGES, Budget(40, ENDLESS))
    assert restless in evolver.population
    assert len(evolver.population) == 2  # and the one elite of all the others
    assert restless in [p.policy for p in synthesiser.parents[-1]]


@pytest.mark.slow
def test_scoring_parents_again_stays_within_its_share() -> None:
    for evaluations in (24, 60):
        evaluator = SyntheticEvaluator(behave=lambda p: (distance(p) / 9.0, distance(p) / 9.0))
        config = EvolverConfig(per_cell=8)
        evolver = Evolver(Stepping(seed=1), evaluator, Archive(), config)
        for at in range(0, 12, 2):
            stages = Stages(EvaluationTask((at,)), EvaluationTask((at, at + 1)))
            before = set(evolver.population) | {knobs()}
            evaluator.jobs.clear()
            evolver.step(knobs(), (), None, stages, Budget(evaluations, ENDLESS))
            again = [p for p, _ in evaluator.jobs if p in before and p != knobs()]
            assert len(again) <= config.rescore_share * evaluations
            fresh = {p.digest for p, _ in evaluator.jobs} - {p.digest for p in before}
            assert len(fresh) >= evaluations // 6  # most goes into new candidates


def test_champions_of_the_same_regime_are_tried_first() -> None:
    night, day = knobs(weight=4.0, name="night"), knobs(weight=5.0, limit=300, name="day")

    def judge(policy: PolicySource, window: int, world: int) -> float:
        best = day if window in (2, 3) else night
        return 9.0 if policy == best else 10.0 + 0.01 * distance(policy)

    evaluator, archive = SyntheticEvaluator(judge), Archive()
    config = EvolverConfig(rescore_share=0.1)

    def step(evolver: Evolver, incumbent: PolicySource, at: int, regime: str, asked: Sequence[PolicySource]):
        stages = Stages(EvaluationTask((at,)), EvaluationTask((at, at + 1)))
        return evolver.step(incumbent, asked, None, stages, Budget(30, ENDLESS), regime=regime).best

    evolver = Evolver(Scripted([night]), evaluator, archive, config)
    assert step(evolver, knobs(), 0, "night", ()) == night
    evolver = Evolver(Scripted([day]), evaluator, archive, config)
    assert step(evolver, knobs(), 2, "day", ()) == day
    evaluator.jobs.clear()
    others = [knobs(weight=40.0 + i) for i in range(9)]
    evolver = Evolver(Scripted(), evaluator, archive, config)
    assert step(evolver, knobs(), 4, "night", others) == night
    again = {p.digest for p, _ in evaluator.jobs} - {knobs().digest}
    assert night.digest in again
    assert len(again) <= 3


def test_with_a_long_full_stage_parents_race() -> None:
    stages = Stages(EvaluationTask((7,)), EvaluationTask(tuple(range(8))))
    parents = [knobs(weight=29.0 - i, name=f"p{i}") for i in range(6)]
    evaluator = SyntheticEvaluator()
    Evolver(Scripted(), evaluator, Archive()).step(knobs(), parents, None, stages, Budget(60, ENDLESS))
    raced = [p.name for p, t in evaluator.jobs if t == stages.smoke and p.name != "knobs"]
    full = [p.name for p, t in evaluator.jobs if t == stages.full and p.name != "knobs"]
    assert sorted(raced) == [f"p{i}" for i in range(6)]
    assert sorted(full) == ["p3", "p4", "p5"]
