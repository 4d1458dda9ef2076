"""Rehearsals change what they say and nothing else, the same each time."""

from __future__ import annotations

import pytest

from loop.compose.rehearsal import CHANGES, LONGEST_ANSWER_TOKENS, MOST_REQUESTS, Stage, changes_for, rehearse
from loop.compose.world import WorldSpec, build_world
from loop.contracts import EventKind, Request, Window

STAGE = Stage({"big": 100_000, "small": 4_000}, ("a", "b", "c", "d"))


def window(count: int = 200) -> Window:
    requests = [Request(i, float(i), "big" if i % 4 else "small", 400, 100, (i,)) for i in range(count)]
    return Window(3, 600.0, 800.0, requests)


@pytest.mark.parametrize("name", CHANGES)
def test_a_rehearsal_is_the_same_each_time_and_keeps_every_request_feasible(name: str) -> None:
    first, again = (rehearse(name, window(), STAGE, 5) for _ in range(2))
    assert first == again
    assert (first.index, first.start_s, first.end_s) == (3, 600.0, 800.0)
    for r in first.requests:
        assert 0 < r.input_tokens + r.output_tokens <= STAGE.max_context_tokens[r.model]
    changed = first.requests != window().requests or first.events != window().events
    assert changed


def test_answers_grow_up_to_the_limit_and_prompts_stay() -> None:
    before = Window(0, 0.0, 1.0, [Request(i, 0.0, "big", 400, 4_000) for i in range(50)])
    after = rehearse("long-answers", before, STAGE, 0)
    lengths = {r.output_tokens for r in after.requests}
    assert lengths == {4_000, LONGEST_ANSWER_TOKENS}
    assert all(r.input_tokens == 400 for r in after.requests)


def test_models_change_places_and_lose_prefixes_of_the_other() -> None:
    after = rehearse("other-mix", window(), STAGE, 0)
    assert sum(r.model == "small" for r in after.requests) == 150
    assert not any(r.block_hashes for r in after.requests)


def test_struck_nodes_follow_the_turn_and_calm_is_a_quarter() -> None:
    struck = [rehearse("lost-node", window(), STAGE, turn).events for turn in range(12)]
    assert {e.kind for events in struck for e in events} == {EventKind.DOWN}
    assert {e.target for events in struck for e in events} == {"a", "b"}
    hot = rehearse("hot-nodes", window(), STAGE, 1).events
    assert len({e.target for e in hot}) == 2
    assert all(e.factor == 0.4 and e.at_s == 600.0 for e in hot)
    assert 20 <= len(rehearse("calm", window(), STAGE, 0).requests) <= 80


def test_large_windows_are_sampled_in_order() -> None:
    after = rehearse("hot-nodes", window(2_000), STAGE, 0)
    ids = [r.id for r in after.requests]
    assert len(ids) == MOST_REQUESTS
    assert ids == sorted(ids)


def test_only_changes_that_can_happen_are_rehearsed() -> None:
    one = build_world(WorldSpec("laptop-2", ("tiny-llama-4m",)))
    assert not {"other-mix", "lost-node", "hot-nodes"} & set(changes_for(one))
    two = build_world(WorldSpec("homogeneous-h100-32", ("llama-3.1-8b", "qwen3-32b")))
    assert changes_for(two) == tuple(CHANGES)
    stage = Stage.of(two, frozenset(two.topology.nodes["h100-0"]))
    assert "h100-0" not in stage.nodes
    assert len(stage.nodes) == 3
