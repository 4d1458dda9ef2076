"""Which parent a question is about, and which others it shows."""

from __future__ import annotations

import random
from collections.abc import Sequence

from loop.contracts import Parent

_OTHERS = 2
"""Parents shown beside the one to change."""


def ranked(parents: Sequence[Parent], rng: random.Random) -> list[Parent]:
    """The parents in a random order that favours the better ones: weight 1, 1/2, 1/3, ..."""
    left = _best_first(parents)
    weights = [1.0 / (rank + 1) for rank in range(len(left))]
    order = []
    while left:
        at = rng.choices(range(len(left)), weights)[0]
        order.append(left.pop(at))
        weights.pop(at)
    return order


def others(base: Parent, parents: Sequence[Parent], rng: random.Random) -> tuple[Parent, ...]:
    """The best of the rest, and another one at random."""
    rest = _best_first([p for p in parents if p.policy.digest != base.policy.digest])
    if len(rest) <= _OTHERS:
        return tuple(rest)
    return (rest[0], rng.choice(rest[1:]))


def _best_first(parents: Sequence[Parent]) -> list[Parent]:
    return sorted(parents, key=lambda parent: (parent.objective, parent.policy.digest))
