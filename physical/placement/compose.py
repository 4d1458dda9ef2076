"""The best series-parallel placements, exactly, by dynamic programming over multisets of machines.

Where no link binds, machines of a kind are alike and segments of a pipeline may trade places, so that only
multisets matter. Let `best[m][n]` be the most tokens/s that the multiset m can carry through exactly n layers. A split
of m in two halves carries, side by side, the sum of both; one after the other, the better of all n1 + n2 = n of the
lesser half. Where all rates fall with n, the latter is the n-th largest of both halves' values taken together (n1 + n2
layers at rate r or more exist exactly where the halves have n1 and n2 values of at least r), which is quicker to find.
Over all splits of all multisets this is the optimum among placements that are built by joining runs in series and in
parallel; bridged shapes are left to the local search.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Counts = tuple[int, ...]
Table = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Piece:
    """A run of layers on one unit, as an offer named it."""

    label: str
    start: int
    count: int


@dataclass(frozen=True)
class Offer:
    """Something that carries layers and takes `need` of each pool."""

    need: Counts
    rates: Table
    """Tokens/s through exactly 1, 2... layers."""
    build: Callable[[int, int], list[list[Piece]]] = field(compare=False)
    """(first layer, how many) -> the pieces that carry them, in groups that stand side by side."""


def machine_offer(label: str, need: Counts, rates: Sequence[float], layers: int) -> Offer:
    """One machine with its measured rates."""
    table = np.zeros(layers)
    table[: min(len(rates), layers)] = rates[:layers]
    return Offer(need, table, lambda start, count: [[Piece(label, start, count)]])


def splits(counts: Sequence[int]) -> float:
    """How many halves all multisets of these counts have: what the work grows with."""
    return math.prod((n + 1) * (n + 2) / 2 for n in counts)


class Compositions:
    """`best` for every multiset up to `counts`. Work: `splits(counts)` times twice the layers."""

    def __init__(self, layers: int, counts: Sequence[int], offers: Sequence[Offer]) -> None:
        self.layers = layers
        self.counts = tuple(counts)
        self._stride = np.array([math.prod(n + 1 for n in self.counts[i + 1 :]) for i in range(len(counts))])
        states = np.array(list(itertools.product(*(range(n + 1) for n in self.counts))))
        self._states = states.reshape(len(states), len(self.counts))
        self._offers: dict[int, list[Offer]] = {}
        for offer in offers:
            if all(need <= have for need, have in zip(offer.need, self.counts, strict=True)):
                self._offers.setdefault(self.index(offer.need), []).append(offer)
        # Measured tables have noise in them: one layer more may look quicker.
        self._falling = all(bool((np.diff(offer.rates) <= 0.0).all()) for offer in offers)
        self._best = np.zeros((len(self._states), layers))
        for state in np.argsort(self._states.sum(axis=1), kind="stable")[1:]:
            self._best[state] = self._solve(int(state))

    @property
    def table(self) -> Table:
        """Tokens/s by state (see `index`) and layers - 1."""
        return self._best

    def index(self, counts: Sequence[int]) -> int:
        """Number of a multiset."""
        return int(np.dot(self._stride, np.asarray(counts)))

    def tokens_per_s(self, counts: Sequence[int] | None = None, layers: int | None = None) -> float:
        """The most that a multiset (default: all) carries through so many layers (default: all)."""
        state = self.index(self.counts if counts is None else counts)
        return float(self._best[state, (layers or self.layers) - 1])

    def build(self, counts: Sequence[int] | None = None, start: int = 0, count: int = 0) -> list[list[Piece]]:
        """A placement that reaches `tokens_per_s`, in groups that stand side by side and share nothing (replicas);
        units that would add nothing are left out."""
        state = self.index(self.counts if counts is None else counts)
        return self._build(state, start, count or self.layers)

    def _halves(self, state: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        ranges = (range(n + 1) for n in self._states[state])
        parts = np.array(list(itertools.product(*ranges))) @ self._stride
        other = state - parts
        keep = (parts > 0) & (parts <= other)
        return parts[keep], other[keep]

    def _solve(self, state: int) -> Table:
        found = np.zeros(self.layers)
        for offer in self._offers.get(state, ()):
            np.maximum(found, offer.rates, out=found)
        one, other = self._halves(state)
        if len(one):
            a, b = self._best[one], self._best[other]
            np.maximum(found, (a + b).max(axis=0), out=found)
            np.maximum(found, self._in_series(a, b), out=found)
        return found

    def _in_series(self, a: Table, b: Table) -> Table:
        """The best over all rows, each a split, of the two halves one after the other."""
        if self._falling:
            both = np.concatenate([a, b], axis=1)
            # The `layers` largest of each row, in falling order.
            both.partition(self.layers, axis=1)
            upper = both[:, self.layers :]
            upper.sort(axis=1)
            best: Table = upper[:, ::-1].max(axis=0)
            return best
        found = np.zeros(self.layers)
        for first in range(1, self.layers):
            joined = np.minimum(a[:, first - 1, None], b[:, : self.layers - first]).max(axis=0)
            np.maximum(found[first:], joined, out=found[first:])
        return found

    def _build(self, state: int, start: int, count: int) -> list[list[Piece]]:
        goal = self._best[state, count - 1]
        if goal <= 0.0:
            return []
        for offer in self._offers.get(state, ()):
            if offer.rates[count - 1] >= goal:
                return offer.build(start, count)
        one, other = self._halves(state)
        mine, others = self._best[one, count - 1], self._best[other, count - 1]
        if (found := np.flatnonzero(np.maximum(mine, others) >= goal)).size:  # the rest adds nothing
            place = found[0]
            return self._build(int((one if mine[place] >= goal else other)[place]), start, count)
        if (found := np.flatnonzero(mine + others >= goal)).size:
            a, b = int(one[found[0]]), int(other[found[0]])
            return self._build(a, start, count) + self._build(b, start, count)
        # Lengths of the first half at which both reach the goal, one after the other; the shortest will do.
        reach = (self._best[one, : count - 1] >= goal) & (self._best[other, : count - 1][:, ::-1] >= goal)
        split, first = (int(n[0]) for n in np.nonzero(reach))
        before = self._build(int(one[split]), start, first + 1)
        after = self._build(int(other[split]), start + first + 1, count - first - 1)
        return [[piece for group in before + after for piece in group]]
