"""Which moves are tried first: what is known to pay in general, trigger and planner together.

With a few dozen candidates a step, the first ones decide; sampling idioms evenly would spend most of them on
what hardly ever pays. Weights are what was seen over several loads and clusters of the twin, and only an
opening: the bandit takes over from there.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Move:
    """Idioms that are grafted together, by (function, name), and constants that are set."""

    idioms: tuple[tuple[str, str], ...] = ()
    constants: tuple[tuple[str, float], ...] = ()
    weight: float = 0.3
    """Expected success, 0 to 1."""


def _pair(trigger: str, planner: str, weight: float) -> Move:
    return Move((("should_replan", trigger), ("plan", planner)), (), weight)


def _route(name: str, weight: float) -> Move:
    return Move((("route", name),), (), weight)


def _order(name: str, weight: float) -> Move:
    return Move((("priority", name),), (), weight)


OPENING: tuple[Move, ...] = (
    _pair("makespan_gain", "node_search", 0.9),
    _pair("makespan_gain", "layout_search", 0.8),
    _pair("makespan_gain", "knapsack", 0.8),
    _route("virtual_usage", 0.8),
    _route("kv_bounded", 0.7),
    _route("filling_batch", 0.7),
    _order("longest_first", 0.6),
    _pair("take_over", "node_search", 0.6),
    _pair("take_over", "batch_limits", 0.5),
    _pair("always", "local_search", 0.5),
    _pair("always", "minimal_move", 0.5),
    _pair("makespan_gain", "balance_models", 0.4),
    _pair("always", "speed_aware", 0.4),
    _pair("makespan_gain", "portfolio", 0.4),
    _pair("makespan_gain", "group_size_by_load", 0.35),
    _pair("makespan_gain", "fresh_layout", 0.35),
    _pair("makespan_gain", "fast_kinds_first", 0.3),
    _pair("mix_drift", "split_roles", 0.2),
    _route("spread_long", 0.4),
    _route("expected_completion", 0.3),
    _route("prefix_affinity", 0.3),
    _route("weighted_power_of_d", 0.25),
    _order("heaviest_first", 0.5),
    _order("cached_first", 0.4),
    _order("shortest_predicted", 0.35),
    _order("shortest_prompt", 0.35),
    Move((), (("MAX_NUM_SEQS", 768),), 0.6),
    Move((), (("MAX_NUM_SEQS", 64),), 0.3),
    Move((), (("MAX_BATCHED_TOKENS", 8192),), 0.4),
    Move((), (("MAX_BATCHED_TOKENS", 1024),), 0.3),
    Move((), (("TAIL", 8.0),), 0.3),
    Move((), (("TAIL", 2.0),), 0.3),
    Move((), (("CONCURRENCY", 2.5),), 0.35),
)
"""Moves in the order of what they are worth, roughly."""

OPERATORS: Mapping[Hashable, float] = {
    "cma": 0.35,
    "step-constant": 0.35,
    "swap-idiom": 0.4,
    "swap-pair": 0.4,
    "extend": 0.3,
    "crossover": 0.35,
    "edit:insert-condition": 0.15,
    "edit:remove-condition": 0.1,
    "edit:change-condition": 0.1,
    "edit:swap-threshold": 0.05,
    "edit:add-term": 0.3,
    "edit:remove-term": 0.15,
    "edit:replace-estimate": 0.25,
    "edit:replace-feature": 0.1,
}
"""Operator -> expected success."""


def idiom_priors() -> dict[tuple[str, str], float]:
    """(function, name) of an idiom -> expected success: its best opening move's; little for the others."""
    priors: dict[tuple[str, str], float] = {}
    for move in OPENING:
        for idiom in move.idioms:
            priors[idiom] = max(move.weight, priors.get(idiom, 0.0))
    return priors


def opening(rng: random.Random) -> list[Move]:
    """All opening moves, the likely ones early, in an order of the generator's (weighted sampling without
    replacement, Efraimidis and Spirakis 2006).
    """
    return sorted(OPENING, key=lambda move: -(rng.random() ** (0.1 / move.weight**5)))
