"""Tables, bounds, programs and the search, against trying every placement."""

from __future__ import annotations

import random

import pytest

from physical.placement.bound import upper_bound
from physical.placement.compose import Compositions, machine_offer
from physical.placement.flow import reaches, tokens_per_s
from physical.placement.milp import by_kind, by_machine
from physical.placement.pools import Pools, regroup
from physical.placement.problem import IDLE, Machine, Placement, Problem, Run, check
from physical.placement.search import STARTS, search
from tests.physical.placement.problems import best_by_trying, random_problem


@pytest.mark.slow
@pytest.mark.parametrize("falling", [True, False])
def test_tables_reach_the_optimum_of_four_machines(falling: bool) -> None:
    # Four machines can make no bridged shape that beats all series-parallel ones.
    for seed in range(4):
        problem = random_problem(seed, layers=4, falling=falling)
        pools = Pools(problem)
        runs = pools.placement(pools.solve(range(4)))
        check(problem, runs)
        best = best_by_trying(problem)
        assert tokens_per_s(problem, runs) == pytest.approx(best), f"seed {seed}"
        assert reaches(upper_bound(problem), best)


def test_side_by_side_pipelines_are_told_apart() -> None:
    offers = [machine_offer("a", (1,), (10.0, 5.0), 4)]
    table = Compositions(4, (4,), offers)
    assert table.tokens_per_s() == 10.0  # one layer each beats two pipelines of two
    groups = Compositions(2, (4,), [machine_offer("a", (1,), (10.0, 9.0), 2)]).build()
    assert len(groups) == 4
    assert [(p.start, p.count) for group in groups for p in group] == [(0, 2)] * 4


def test_a_table_answers_for_every_share_of_the_machines() -> None:
    offers = [machine_offer("a", (1, 0), (8.0, 4.0), 3), machine_offer("b", (0, 1), (6.0,), 3)]
    table = Compositions(3, (2, 2), offers)
    assert table.tokens_per_s((0, 2)) == 0.0  # two layers of three
    assert table.tokens_per_s((1, 1)) == 4.0
    assert table.tokens_per_s((1, 2)) == 6.0
    pieces = [piece for group in table.build((1, 2)) for piece in group]
    assert sorted((p.start, p.count) for p in pieces) == [(0, 1), (1, 1), (2, 1)]


def test_machines_too_slow_for_the_flow_count_half() -> None:
    # Five layers; at more than 5 tokens/s only single layers are quick enough, and three machines hold three.
    problem = Problem(5, tuple(Machine(f"m{i}", "m", (20.0, 5.0)) for i in range(3)))
    assert upper_bound(problem) == 5.0
    assert best_by_trying(problem) == 5.0


@pytest.mark.parametrize("falling", [True, False])
def test_the_program_by_kind_is_exact(falling: bool) -> None:
    for seed in range(3):
        problem = random_problem(seed, layers=3, falling=falling)
        best = best_by_trying(problem)
        solved = by_kind(problem, 60.0)
        assert solved is not None
        assert solved.proven or best == 0.0
        assert solved.tokens_per_s == pytest.approx(best)
        assert solved.bound == pytest.approx(best)


def test_the_program_by_kind_can_prove_that_nothing_is_better() -> None:
    problem = random_problem(2, layers=4)
    best = best_by_trying(problem)
    solved = by_kind(problem, 60.0, best=best)
    assert solved is not None
    assert solved.bound == pytest.approx(best)


@pytest.mark.slow
@pytest.mark.parametrize(("links", "partial"), [(True, False), (False, True), (True, True)])
def test_the_program_by_machine_is_exact(links: bool, partial: bool) -> None:
    for seed in (3, 4):
        problem = random_problem(seed, machines=3, layers=4, links=links, partial=partial)
        solved = by_machine(problem, 60.0)
        assert solved.proven
        assert solved.tokens_per_s == pytest.approx(best_by_trying(problem), abs=1e-5)


def test_the_program_by_machine_moves_only_whom_it_may() -> None:
    problem = Problem(4, tuple(Machine(f"m{i}", "m", (9.0, 6.0, 4.0)) for i in range(3)))
    warm = (Run(0, 2), Run(0, 1), Run(0, 1))
    solved = by_machine(problem, 60.0, warm=warm, free=[1, 2])
    assert solved.placement is not None
    assert solved.placement[0] == warm[0]
    assert solved.tokens_per_s == pytest.approx(6.0)
    with pytest.raises(ValueError, match="warm"):
        by_machine(problem, 1.0, free=[0])


@pytest.mark.slow
@pytest.mark.parametrize("partial", [False, True])
def test_a_search_over_links_finds_the_optimum_of_three_machines(partial: bool) -> None:
    for seed in (0, 6, 8):
        problem = random_problem(seed, machines=3, layers=4, links=True, partial=partial)
        best = best_by_trying(problem)
        found = search(problem, budget_s=60.0, seed=1)
        check(problem, found.placement)
        assert found.tokens_per_s == pytest.approx(best, abs=1e-5)
        assert reaches(found.bound, best)


def test_the_search_stops_at_the_bound_and_tells_how_it_got_there() -> None:
    problem = Problem(6, tuple(Machine(f"m{i}", "m", (12.0, 6.0, 4.0)) for i in range(3)))
    found = search(problem, budget_s=600.0)
    assert found.optimal
    assert found.tokens_per_s == 6.0
    assert found.took_s < 600.0
    rates = [step.tokens_per_s for step in found.curve]
    assert rates == sorted(rates)
    assert found.reached_s(6.0) == found.curve[-1].at_s
    assert found.reached_s(7.0) is None


def test_known_systems_make_valid_placements() -> None:
    for seed in range(10):
        problem = random_problem(seed, machines=9, layers=6, kinds=3)
        for start in STARTS.values():
            check(problem, start(problem))


def test_everyone_holds_something_where_everyone_must() -> None:
    machines = tuple(Machine(f"m{i}", "m", (8.0, 4.0)) for i in range(5))
    problem = Problem(2, machines, must_hold=True)
    found = search(problem, budget_s=60.0)
    check(problem, found.placement)
    assert all(run.count for run in found.placement)


@pytest.mark.slow
def test_pools_of_too_many_machines_are_solved_two_by_two() -> None:
    rng = random.Random(0)
    tables = [tuple(rng.uniform(50.0, 150.0) / k**1.3 for k in range(1, 5)) for _ in range(4)]
    machines = tuple(Machine(f"m{i}", f"k{i % 4}", tables[i % 4]) for i in range(24))
    problem = Problem(8, machines)
    values: list[float] = []

    def better(placement: Placement, value: float) -> bool:
        check(problem, placement)
        assert value == pytest.approx(tokens_per_s(problem, placement))
        values.append(value)
        return False

    rounds = iter(range(40))
    regroup(
        problem,
        lambda placement: tokens_per_s(problem, placement),
        better,
        ended=lambda: next(rounds, None) is None,
        rng=rng,
        limit_s=0.002,
    )
    assert values == sorted(values)
    assert values[-1] > values[0] > 0.0


def test_nothing_is_found_where_nothing_fits() -> None:
    problem = Problem(9, (Machine("a", "a", (5.0, 3.0)), Machine("b", "b", ())))
    found = search(problem, budget_s=1.0)
    assert found.tokens_per_s == 0.0
    assert found.bound == 0.0
    assert found.placement[1] == IDLE


def test_sites_with_poor_links_between_them_carry_flows_of_their_own() -> None:
    machines = tuple(Machine(f"m{i}", "m", (10.0, 8.0)) for i in range(4))
    links = {(i, j): 50.0 if (i - j) % 2 == 0 else 1.0 for i in range(4) for j in range(4) if i != j}
    found = search(Problem(4, machines, links), budget_s=60.0)
    assert found.optimal
    assert found.tokens_per_s == pytest.approx(16.0)
    assert found.method == "composed by sites"
