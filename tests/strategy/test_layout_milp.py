"""The exact layout."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from loop.contracts import Plan
from strategy import policy_api as api
from strategy.layout_milp import LayoutProblem, solve_layout
from tests.strategy import builders as b
from tests.strategy.conformance import infeasibilities

SMALL = (("big", 4), ("mid", 4))


def worst_share(obs: api.Observation, specs: tuple[api.ReplicaSpec, ...]) -> float:
    """Share of its load that the worst-served model gets in a second."""
    return min(sum(api.rates(obs, specs, load)) / load.requests for load in api.loads(obs))


def best_by_trying(obs: api.Observation) -> float:
    """The best worst share over all ways to fill each node, by brute force."""
    per_node = []
    for node, kind in (("n00", "big"), ("n01", "mid")):
        mine = [o for o in obs.options if o.kind == kind and o.pp == 1]
        ways = []
        for counts in itertools.product(*(range(4 // o.tp + 1) for o in mine)):
            if sum(c * o.tp for c, o in zip(counts, mine, strict=True)) <= 4:
                picked = [o for c, o in zip(counts, mine, strict=True) for _ in range(c)]
                starts = itertools.accumulate((o.tp for o in picked), initial=0)
                ways.append(
                    tuple(
                        api.spec_of(o, tuple(f"{node}/{i}" for i in range(at, at + o.tp)))
                        for o, at in zip(picked, starts, strict=False)
                    )
                )
        per_node.append(ways)
    return max(worst_share(obs, (*x, *y)) for x, y in itertools.product(*per_node))


@pytest.mark.parametrize("models", [("tiny",), ("large", "tiny")])
def test_no_layout_is_better(models: tuple[str, ...]) -> None:
    obs = b.observation(SMALL, models, [b.busy(m, 200_000) for m in models])  # enough for full batches
    obs = replace(obs, options=tuple(o for o in obs.options if o.pp == 1))
    specs = solve_layout(LayoutProblem(obs, api.loads(obs)), 2.0)
    assert infeasibilities(Plan(specs), obs) == []
    assert worst_share(obs, specs) >= 0.99 * best_by_trying(obs)


def test_replicas_that_fit_the_optimum_keep_serving() -> None:
    obs = b.observation((("big", 8), ("mid", 8)), ("tiny",))
    specs = solve_layout(LayoutProblem(obs, api.loads(obs)), 2.0)
    obs = b.serving(obs, Plan(specs[::-1]))
    assert set(solve_layout(LayoutProblem(obs, api.loads(obs)), 2.0)) == set(specs)


def test_a_model_with_no_load_still_gets_a_replica() -> None:
    obs = b.observation(SMALL, ("large", "tiny"), [b.busy("tiny"), b.demand("large")])
    specs = solve_layout(LayoutProblem(obs, api.loads(obs)), 2.0)
    assert {spec.model for spec in specs} == {"large", "tiny"}


def test_pipelines_over_nodes_when_no_node_is_large_enough() -> None:
    obs = b.observation((("mid", 4),) * 4, ("large",))
    wide = b.option("large", "mid", 4, 2)
    assert wide is not None
    obs = replace(obs, options=(wide,))
    specs = solve_layout(LayoutProblem(obs, api.loads(obs)), 2.0)
    assert len(specs) == 2
    assert infeasibilities(Plan(specs), obs) == []
    again = b.serving(obs, Plan(specs))
    assert set(solve_layout(LayoutProblem(again, api.loads(again)), 2.0)) == set(specs)


def test_slow_devices_count_for_less() -> None:
    """With one node throttled to a tenth, the small load stays where it is fast."""
    obs = b.observation((("big", 4), ("big", 4)), ("large", "tiny"), [b.busy("large"), b.busy("tiny", 50)])
    slow = replace(obs, devices=tuple(replace(d, speed=0.1 if d.node == "n01" else 1.0) for d in obs.devices))
    specs = solve_layout(LayoutProblem(slow, api.loads(slow)), 2.0)
    fast = [s for s in specs if s.devices[0].startswith("n00")]
    assert sum(len(s.devices) for s in fast if s.model == "large") >= 2
