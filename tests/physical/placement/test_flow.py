"""The flow of a placement, against networkx, and its cuts."""

from __future__ import annotations

import math
import random

import networkx as nx
import pytest

from physical.placement.flow import max_flow, tokens_per_s
from physical.placement.maxflow import FlowNetwork
from physical.placement.problem import (
    IDLE,
    SINK,
    SOURCE,
    Machine,
    PlacementError,
    Problem,
    Run,
    check,
    joins,
)
from tests.physical.placement.problems import random_problem


def random_runs(problem: Problem, rng: random.Random) -> tuple[Run, ...]:
    runs = []
    for i in range(len(problem.machines)):
        count = rng.randint(0, problem.most(i))
        runs.append(Run(rng.randint(0, problem.layers - count), count) if count else IDLE)
    return tuple(runs)


def by_networkx(problem: Problem, runs: tuple[Run, ...]) -> float:
    graph = nx.DiGraph()
    graph.add_nodes_from(["s", "t"])
    for i, run in enumerate(runs):
        if not run.count:
            continue
        graph.add_edge((i, "in"), (i, "out"), capacity=problem.rate(i, run))
        if run.start == 0:
            graph.add_edge("s", (i, "in"), capacity=problem.link(SOURCE, i))
        if run.end == problem.layers:
            graph.add_edge((i, "out"), "t", capacity=problem.link(i, SINK))
        for j, other in enumerate(runs):
            if i != j and joins(problem, run, other):
                graph.add_edge((i, "out"), (j, "in"), capacity=problem.link(i, j))
    return float(nx.maximum_flow_value(graph, "s", "t"))


@pytest.mark.parametrize(
    ("links", "partial"),
    [
        (True, True),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(False, False, marks=pytest.mark.slow),
    ],
)
def test_random_placements_flow_as_networkx_says(links: bool, partial: bool) -> None:
    rng, positive = random.Random(1), 0
    for seed in range(40):
        problem = random_problem(seed, machines=7, layers=4, kinds=3, links=links, partial=partial)
        for _ in range(8):
            runs = random_runs(problem, rng)
            expected = by_networkx(problem, runs)
            positive += expected > 0.0
            assert tokens_per_s(problem, runs) == pytest.approx(expected, abs=1e-6)
            flow = max_flow(problem, runs)
            assert flow.tokens_per_s == pytest.approx(expected, abs=1e-6)
            for cut in flow.cuts:
                size = math.fsum(problem.rate(i, runs[i]) for i in cut.machines)
                size += math.fsum(problem.link(a, b) for a, b in cut.links)
                assert size == pytest.approx(expected)
    assert positive > 30


def test_flow_is_kept_at_every_machine() -> None:
    problem = random_problem(5, machines=8, layers=3, kinds=2)
    flow = max_flow(problem, random_runs(problem, random.Random(3)))
    assert flow.tokens_per_s > 0.0
    for i, through in enumerate(flow.machines):
        arriving = math.fsum(v for (_, b), v in flow.links.items() if b == i)
        leaving = math.fsum(v for (a, _), v in flow.links.items() if a == i)
        assert arriving == pytest.approx(through)
        assert leaving == pytest.approx(through)


def test_the_last_layers_have_rates_of_their_own() -> None:
    machine = Machine("a", "a", (100.0, 50.0), last_tokens_per_s=(80.0, 45.0))
    problem = Problem(2, (machine, Machine("b", "a", (100.0, 50.0), (80.0, 45.0))))
    assert tokens_per_s(problem, (Run(0, 1), Run(1, 1))) == 80.0
    assert tokens_per_s(problem, (Run(0, 2), IDLE)) == 45.0


def test_partial_inference_lets_runs_overlap() -> None:
    machines = (Machine("a", "a", (9.0, 9.0, 9.0)), Machine("b", "b", (8.0, 8.0, 8.0)))
    runs = (Run(0, 3), Run(1, 3))
    assert tokens_per_s(Problem(4, machines), runs) == 0.0
    assert tokens_per_s(Problem(4, machines, partial=True), runs) == 8.0


def test_an_unlimited_path_is_infinite() -> None:
    network = FlowNetwork(2)
    network.add(0, 1, math.inf)
    assert network.solve(0, 1) == math.inf


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ((Run(0, 3), IDLE), "machine 'a': 3 layers, it holds at most 2"),
        ((Run(2, 2), IDLE), "machine 'a': layers 2 to 3 of 3"),
        ((Run(0, 1),), "1 runs for 2 machines"),
    ],
)
def test_what_breaks_the_rules_is_named(runs: tuple[Run, ...], says: str) -> None:
    problem = Problem(3, (Machine("a", "a", (2.0, 1.0)), Machine("b", "a", (2.0, 1.0))))
    with pytest.raises(PlacementError, match=says):
        check(problem, runs)


def test_impossible_problems_are_refused() -> None:
    with pytest.raises(PlacementError, match="no machines"):
        Problem(3, ())
    with pytest.raises(PlacementError, match="'a': rates must be finite"):
        Problem(3, (Machine("a", "a", (math.nan,)),))
    with pytest.raises(PlacementError, match="no such ends"):
        Problem(3, (Machine("a", "a", (1.0,)),), {(0, 4): 1.0})
