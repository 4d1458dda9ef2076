"""Rehearsals: past windows to which something happens that has not happened yet.

A score on the past alone cannot tell a policy that would adapt to a change from one that would not. So candidates
also serve what the last window would have been with other lengths, another mix, another rate or fewer devices.
Nothing of the future enters: the changes are the same for every workload, and stand here.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from loop.compose.world import World
from loop.contracts import ClusterEvent, EventKind, Request, Window

MOST_REQUESTS = 300
"""Requests of a rehearsal: a sample of them, where the window had more."""
LONGEST_PROMPT_TOKENS = 32_768
LONGEST_ANSWER_TOKENS = 8_192


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a rehearsal plays: what limits the requests, and what may fail."""

    max_context_tokens: Mapping[str, int]
    """By model."""
    nodes: tuple[str, ...]
    """Nodes of which a device is up, the most capable first."""

    @classmethod
    def of(cls, world: World, down: frozenset[str] = frozenset()) -> Stage:
        """The stage that a world gives while the devices in `down` are not available."""
        devices = world.topology.devices

        def flops(node: str) -> float:
            return sum(
                max(devices[d].profile.flops.values(), default=0.0) for d in world.topology.nodes[node]
            )

        up = [n for n, ids in world.topology.nodes.items() if not down.issuperset(ids)]
        limits = {name: model.max_context_tokens for name, model in world.models.items()}
        return cls(limits, tuple(sorted(up, key=lambda n: (-flops(n), n))))


Change = Callable[[Window, Stage, random.Random], Window]


def long_answers(window: Window, stage: Stage, rng: random.Random) -> Window:
    """Answers of half of the requests are eight times as long: reasoning."""

    def longer(r: Request) -> Request:
        room = stage.max_context_tokens[r.model] - r.input_tokens
        tokens = min(r.output_tokens * 8, LONGEST_ANSWER_TOKENS, max(1, room))
        return r._replace(output_tokens=max(r.output_tokens, tokens))

    return _each(window, lambda r: longer(r) if rng.random() < 0.5 else r)


def long_prompts(window: Window, stage: Stage, rng: random.Random) -> Window:
    """Prompts of half of the requests are eight times as long: documents."""

    def longer(r: Request) -> Request:
        room = stage.max_context_tokens[r.model] - r.output_tokens
        tokens = min(r.input_tokens * 8, LONGEST_PROMPT_TOKENS, max(1, room))
        return r._replace(input_tokens=max(r.input_tokens, tokens))

    return _each(window, lambda r: longer(r) if rng.random() < 0.5 else r)


def other_mix(window: Window, stage: Stage, _rng: random.Random) -> Window:
    """The models change places: the one asked for most becomes the one asked for least."""
    counts = Counter(dict.fromkeys(sorted(stage.max_context_tokens), 0))
    counts.update(r.model for r in window.requests)
    ranked = [model for model, _ in counts.most_common()]
    swapped = dict(zip(ranked, reversed(ranked), strict=True))

    def moved(r: Request) -> Request:
        model = swapped[r.model]
        room = stage.max_context_tokens[model] - r.output_tokens
        return r._replace(model=model, input_tokens=max(1, min(r.input_tokens, room)), block_hashes=())

    return _each(window, moved)


def calm(window: Window, _stage: Stage, rng: random.Random) -> Window:
    """A quarter of the requests."""
    kept = [r for r in window.requests if rng.random() < 0.25] or list(window.requests[:1])
    return replace(window, requests=kept)


def lost_node(window: Window, stage: Stage, rng: random.Random) -> Window:
    """One of the two most capable nodes fails at the start."""
    return _struck(window, rng.choice(stage.nodes[:2]), EventKind.DOWN)


def hot_nodes(window: Window, stage: Stage, rng: random.Random) -> Window:
    """Two of the four most capable nodes run at two fifths of their speed."""
    for node in rng.sample(stage.nodes[:4], 2):
        window = _struck(window, node, EventKind.SPEED, factor=0.4)
    return window


CHANGES: Mapping[str, Change] = {
    "long-answers": long_answers,
    "other-mix": other_mix,
    "long-prompts": long_prompts,
    "hot-nodes": hot_nodes,
    "lost-node": lost_node,
    "calm": calm,
}
"""In the order in which they are rehearsed."""


def changes_for(world: World) -> tuple[str, ...]:
    """The changes that make a difference in a world: two models can change places, one of several nodes fail."""
    nodes = len(world.topology.nodes)
    needs = {"other-mix": len(world.models) > 1, "lost-node": nodes > 1, "hot-nodes": nodes > 2}
    return tuple(name for name in CHANGES if needs.get(name, True))


def rehearse(name: str, window: Window, stage: Stage, turn: int) -> Window:
    """The window after the change of this name; the same each time for the same `turn`, which decides what is
    struck."""
    rng = random.Random(f"{name}/{turn}")
    if len(window.requests) > MOST_REQUESTS:
        drawn = sorted(rng.sample(range(len(window.requests)), MOST_REQUESTS))
        window = replace(window, requests=[window.requests[i] for i in drawn])
    return CHANGES[name](window, stage, rng)


def _each(window: Window, change: Callable[[Request], Request]) -> Window:
    return replace(window, requests=[change(r) for r in window.requests])


def _struck(window: Window, node: str, kind: EventKind, factor: float = 1.0) -> Window:
    event = ClusterEvent(window.start_s, kind, node, factor=factor)
    return replace(window, events=(*window.events, event))
