"""Scoring parents again when the windows have moved: whom, and how many."""

from __future__ import annotations

from collections.abc import Sequence

from loop.contracts import PolicySource
from strategy.evolve.archive import Archive
from strategy.evolve.scoreboard import Scoreboard
from strategy.evolve.settlement import Settlement
from strategy.evolve.step import Step
from strategy.evolve.terms import EvolverConfig

_AHEAD = 2
"""Members scored at the start of a step, whichever island's turn will come."""


class Rescoring:
    """Spends at most a share of a step's evaluations on policies that had their score under other windows.

    At the start of a step on those most likely to be of use; on the members of an island only when its turn
    comes. Old scores say whom to try first, and nothing else.
    """

    def __init__(
        self, config: EvolverConfig, board: Scoreboard, archive: Archive, settlement: Settlement
    ) -> None:
        self._config = config
        self._board = board
        self._archive = archive
        self._settlement = settlement
        self._population = settlement.population
        self._paid = 0

    def begin(self, step: Step) -> None:
        """Settle who can be settled for nothing; then score champions of this regime, the guests, and the
        most promising members of all islands. The rest of the allowance is for islands, in their turn."""
        self._paid = 0
        members = self._members()
        self._settle_known(step, [*step.guests.values(), *members])
        champions = self._archive.champions(step.regime) if step.regime else []
        first = self._unscored(step, [*champions[:2], *self._by_prior(list(step.guests.values()))])
        members = [p for p in self._unscored(step, members) if p not in first][:_AHEAD]
        self._score(step, [*first[: max(0, self._room(step) - len(members))], *members])

    def island(self, step: Step, island: int) -> None:
        """The turn of an island has come: some of its members may be needed as parents."""
        if self._population.fresh(island):
            return
        stale = [m.policy for m in self._population.stale(island)]
        self._score(step, self._unscored(step, stale)[: self._config.batch // 2])

    def _score(self, step: Step, policies: Sequence[PolicySource]) -> None:
        """As far as the allowance and the time go. When the full stage is much longer than the smoke stage,
        only the better half in the latter goes on."""
        policies = policies[: self._room(step)]
        full, smoke = step.stages.full, step.stages.smoke
        if len(policies) > 2 and len(full.windows) >= self._config.race_windows * len(smoke.windows):
            policies = policies[: max(2, 2 * self._room(step) // 3)]
            if not self._board.has_time(len(policies) * len(smoke.windows)):
                return
            self._pay(policies, "smoke", step)
            ranked = sorted(policies, key=lambda p: (self._board.ratio(p, smoke), p.digest))
            policies = ranked[: (len(ranked) + 1) // 2]
        if policies and self._board.has_time(len(policies) * len(full.windows)):
            self._pay(policies, "full", step)
            self._settle_known(step, policies)

    def _pay(self, policies: Sequence[PolicySource], stage: str, step: Step) -> None:
        before = self._board.spent
        self._board.evaluate(policies, stage, step.stages.full if stage == "full" else step.stages.smoke)
        self._paid += self._board.spent - before

    def _room(self, step: Step) -> int:
        """Evaluations that may still go into parents."""
        share = int(step.budget.evaluations * self._config.rescore_share)
        return max(0, min(share - self._paid, self._board.left - 2))

    def _settle_known(self, step: Step, policies: Sequence[PolicySource]) -> None:
        for policy in policies:
            if policy.digest in step.ratios or self._board.evaluation(policy, step.stages.full) is None:
                continue
            self._settlement.settle(step, policy)
            if step.ratios[policy.digest] <= 1.0 - self._config.margin:
                step.finalists.append(policy)

    def _unscored(self, step: Step, policies: Sequence[PolicySource]) -> list[PolicySource]:
        return [p for p in {p.digest: p for p in policies}.values() if p.digest not in step.ratios]

    def _members(self) -> list[PolicySource]:
        """Of all islands, the most promising first, the islands in turn."""
        queues = [
            [*self._population.fresh(i), *self._population.stale(i)] for i in range(self._population.islands)
        ]
        depth = max((len(q) for q in queues), default=0)
        found = [queue[place].policy for place in range(depth) for queue in queues if place < len(queue)]
        return list({p.digest: p for p in found}.values())

    def _by_prior(self, policies: Sequence[PolicySource]) -> list[PolicySource]:
        """Those that never had a score first, then by the last one."""
        priors = {p.digest: self._archive.last_ratio(p.digest) or 0.0 for p in policies}
        return sorted(policies, key=lambda p: priors[p.digest])
