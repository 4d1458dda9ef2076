"""The population: islands that evolve apart, each a MAP-Elites grid over what its policies do.

A grid keeps the best policies of each cell (Mouret and Clune, 2015), so that unlike ones survive; islands
exchange their best in a ring now and then (Whitley et al., 1999). The population is the sum of its
placements in order, so the archive can rebuild it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from random import Random

from loop.contracts import PolicySource, Score
from strategy.evolve.archive import Placement

Cell = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Member:
    """A policy on an island."""

    policy: PolicySource
    placement: Placement

    @property
    def ratio(self) -> float:
        """Against the incumbent of its generation: a score in that generation, a hint ever after."""
        return self.placement.ratio

    @property
    def generation(self) -> int:
        """When it was scored."""
        return self.placement.generation


class Population:
    """Islands of cells. A member whose score is of an earlier step is stale: it is no parent, and competes
    only with other stale ones, until it is scored again."""

    def __init__(self, islands: int, bins: int, per_cell: int) -> None:
        self._islands: list[dict[Cell, list[Member]]] = [{} for _ in range(max(1, islands))]
        self._bins = bins
        self._per_cell = per_cell
        self._generation = 0
        self._settled = 0

    @property
    def islands(self) -> int:
        """How many."""
        return len(self._islands)

    def begin(self, generation: int) -> None:
        """A step begins: all scores are stale."""
        self._generation = generation

    def place(self, policy: PolicySource, placement: Placement) -> None:
        """Put a policy into its cell, or take it away when its ratio is inf; the worst of a full cell goes."""
        island = self._islands[placement.island % self.islands]
        for cell, members in list(island.items()):
            island[cell] = [m for m in members if m.policy.digest != policy.digest]
        self._generation = max(self._generation, placement.generation)
        self._settled += placement.how == "seed"
        if isfinite(placement.ratio):
            cell = self._cell(placement)
            island[cell] = self._kept([*island.get(cell, []), Member(policy, placement)])

    def homes(self, digest: str) -> list[int]:
        """The islands on which a policy lives."""
        return [i for i in range(self.islands) if any(m.policy.digest == digest for m in self._all(i))]

    def next_home(self) -> int:
        """The island for a policy that was given from outside: each in turn."""
        return self._settled % self.islands

    def fresh(self, island: int) -> list[Member]:
        """Members with a score of this step, the best first."""
        return sorted((m for m in self._all(island) if m.generation == self._generation), key=_rank)

    def stale(self, island: int) -> list[Member]:
        """Members without, the most promising first: scored most recently, then by the score of then."""
        old = (m for m in self._all(island) if m.generation != self._generation)
        return sorted(old, key=lambda m: (-m.generation, *_rank(m)))

    def ranked(self) -> list[PolicySource]:
        """All policies: those scored in this step first, the best first."""
        order = [m for i in range(self.islands) for m in self._all(i)]
        order.sort(key=lambda m: (-m.generation, *_rank(m)))
        return list({m.policy.digest: m.policy for m in order}.values())

    def migrations(self, count: int) -> list[tuple[PolicySource, Placement]]:
        """The best `count` of each island with a score of this step, as newcomers of the next island."""
        found = []
        for island in range(self.islands if self.islands > 1 else 0):
            target = (island + 1) % self.islands
            there = {m.policy.digest for m in self._all(target)}
            for member in [m for m in self.fresh(island) if m.policy.digest not in there][:count]:
                p = member.placement
                moved = Placement(
                    p.digest, target, p.generation, p.ratio, p.replan_rate, p.scaling, "migrated"
                )
                found.append((member.policy, moved))
        return found

    def _all(self, island: int) -> Iterable[Member]:
        return (m for members in self._islands[island].values() for m in members)

    def _kept(self, members: Sequence[Member]) -> list[Member]:
        """Of the fresh and of the stale ones, as many as a cell holds: stale ones neither oust nor yield."""
        fresh = sorted((m for m in members if m.generation == self._generation), key=_rank)
        stale = sorted(
            (m for m in members if m.generation != self._generation),
            key=lambda m: (-m.generation, *_rank(m)),
        )
        return [*fresh[: self._per_cell], *stale[: self._per_cell]]

    def _cell(self, placement: Placement) -> Cell:
        """By replan rate, and by the square root of the share rearranged: most rearrange little."""
        return self._bin(placement.replan_rate), self._bin(sqrt(max(0.0, placement.scaling)))

    def _bin(self, value: float) -> int:
        return min(self._bins - 1, max(0, int(value * self._bins)))


def select(
    ranked: Sequence[tuple[PolicySource, float]], count: int, explore: float, rng: Random
) -> list[tuple[PolicySource, float]]:
    """`count` of the policies, most by rank and a share of `explore` at random; the best first."""
    by_rank = max(1, count - round(count * explore)) if len(ranked) > count else count
    rest = list(ranked[by_rank:])
    chosen = [*ranked[:by_rank], *rng.sample(rest, min(len(rest), count - by_rank))]
    return sorted(chosen, key=lambda item: (item[1], item[0].digest))


def placement_of(
    policy: PolicySource, island: int, event: tuple[int, float, str], score: Score | None
) -> Placement:
    """Where a policy with this score belongs; without one, nowhere. `event`: (generation, ratio, how)."""
    generation, ratio, how = event
    if score is None:
        return Placement(policy.digest, island, generation, inf, 0.0, 0.0, how)
    return Placement(policy.digest, island, generation, ratio, score.replan_rate, score.scaling, how)


def _rank(member: Member) -> tuple[float, str]:
    return member.ratio, member.policy.digest
