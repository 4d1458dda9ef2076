"""Who lives where: puts what was scored onto the islands, and each placement into the archive."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite

from loop.contracts import PolicySource
from strategy.evolve.archive import Archive, Placement
from strategy.evolve.population import Population, placement_of
from strategy.evolve.scoreboard import Scoreboard
from strategy.evolve.step import Step
from strategy.evolve.terms import EvolverConfig, Stages


class Settlement:
    """The population and its book. Rebuilt from the archive: the same placements in the same order."""

    def __init__(self, config: EvolverConfig, archive: Archive, board: Scoreboard) -> None:
        self._archive = archive
        self._board = board
        self._migrate_every = config.migrate_every
        self._migrants = config.migrants
        self._births = archive.islands()
        self._failed: set[tuple[str, str, Stages]] = set()
        """(finalist, incumbent, stages) of those that failed their proof."""
        self.population = Population(config.islands, config.bins, config.per_cell)
        policies = {p.digest: p for p in archive}
        for placement in archive.placements():
            self.population.place(policies[placement.digest], placement)

    @property
    def next_turn(self) -> int:
        """The island after that of the last birth."""
        return (next(reversed(self._births.values()), -1) + 1) % self.population.islands

    def settle(self, step: Step, policy: PolicySource) -> None:
        """A policy has its ratio in the full stage: it takes its place, or leaves when it has no score."""
        ratio = self._board.ratio(policy, step.stages.full)
        if (policy.digest, step.incumbent.digest, step.stages) in self._failed:
            ratio = max(1.0, ratio)
        self._settle(step, policy, ratio, "rescored")

    def demote(self, step: Step, finalist: PolicySource) -> None:
        """A finalist that failed its proof is no winner on these windows any more, but still a parent."""
        self._failed.add((finalist.digest, step.incumbent.digest, step.stages))
        self._settle(step, finalist, max(1.0, step.ratios[finalist.digest]), "overfit")

    def expel(self, policy: PolicySource, generation: int) -> None:
        """A policy leaves the population."""
        homes = self.population.homes(policy.digest)
        self._place([(policy, placement_of(policy, i, (generation, inf, "refused"), None)) for i in homes])

    def home_of_child(self, step: Step, candidate: PolicySource, island: int) -> int:
        """A child lives where its first parent does; a child of a guest, who stands on all islands, where it
        was asked for."""
        first = candidate.parents[0] if candidate.parents else step.incumbent.digest
        homes = self.population.homes(first)
        away = homes and island not in homes and first not in step.guests
        return self._births.setdefault(candidate.digest, homes[0] if away else island)

    def migrate(self, generation: int) -> None:
        """Every few steps, the best of each island go to the next one too."""
        if self._migrate_every > 0 and generation % self._migrate_every == 0:
            self._place(self.population.migrations(self._migrants))

    def _settle(self, step: Step, policy: PolicySource, ratio: float, how: str) -> None:
        step.ratios[policy.digest] = ratio
        homes = self.population.homes(policy.digest)
        if not homes:
            if not isfinite(ratio):
                return
            how = "born" if policy.digest in self._births else "seed"
            homes = [self._births.get(policy.digest, self.population.next_home())]
        score = self._board.score(policy, step.stages.full)
        event = step.generation, ratio, how
        self._place([(policy, placement_of(policy, i, event, score)) for i in homes])

    def _place(self, placements: Sequence[tuple[PolicySource, Placement]]) -> None:
        self._archive.add_placements([placement for _, placement in placements])
        for policy, placement in placements:
            self.population.place(policy, placement)
