"""The search of a step: ask for candidates, island by island, and send them through the cascade."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from random import Random

from loop.contracts import Parent, PolicySource, Synthesiser
from strategy.evolve.cascade import Cascade
from strategy.evolve.population import select
from strategy.evolve.rescoring import Rescoring
from strategy.evolve.scoreboard import Scoreboard, windows_in
from strategy.evolve.settlement import Settlement
from strategy.evolve.step import Step
from strategy.evolve.terms import EvolverConfig

_POLL_S = 0.05
"""Between two questions to a synthesiser that is still writing and answered at once."""


@dataclass(slots=True)
class Search:
    """Asks until something runs out. `report(step)` is called while a synthesiser is waited for."""

    config: EvolverConfig
    synthesiser: Synthesiser
    board: Scoreboard
    cascade: Cascade
    settlement: Settlement
    rescoring: Rescoring
    clock: Callable[[], float]
    pause: Callable[[float], None]
    report: Callable[[Step], None]
    turn: int = 0
    """The island that is asked for next."""

    def run(self, step: Step, cut_off: Sequence[PolicySource]) -> str:
        """Spend the budget; what ended it. Candidates of a step that was cut off come first."""
        waiting = list(cut_off)
        empty = barren = asked = 0
        while True:
            count = self._affordable(step)
            if count < 1:
                return "budget of evaluations spent"
            if not self._has_time(step, count):
                return "stopped" if self.board.stopped else "deadline near"
            if waiting:
                step.resumed += len(waiting[:count])
                self.cascade.climb(step, waiting[:count])
                del waiting[:count]
                continue
            asked += 1
            candidates, island = self._ask(step, count, asked)
            if candidates:
                admitted = self._admit(step, candidates, island)
                empty, barren = 0, 0 if admitted else barren + 1
                if self._has_time(step, len(admitted)):  # the answer may have taken long
                    self.cascade.climb(step, admitted)
            elif self.synthesiser.pending == 0:
                empty += 1
            if empty > 1:
                return "the synthesiser has no more ideas"
            if barren >= self.config.barren:
                return f"the synthesiser repeats itself: nothing new in {barren} answers"

    def _ask(self, step: Step, count: int, asked: int) -> tuple[list[PolicySource], int]:
        """(new candidates from the parents of an island, the island). While some are still being written, an
        empty answer is worth a pause, and the same island is asked for again."""
        island = self.turn
        self.rescoring.island(step, island)
        parents = self._parents(step, island, Random(f"{step.generation}/{asked}"))
        began = self.clock()
        candidates = self.synthesiser.ask(parents, step.obs, count)
        if candidates or self.synthesiser.pending == 0:
            self.turn = (island + 1) % self.settlement.population.islands
        else:
            self.report(step)
            if self.clock() - began < _POLL_S:
                self.pause(_POLL_S)
        return candidates, island

    def _parents(self, step: Step, island: int, rng: Random) -> list[Parent]:
        """Of the island and the guests, those with a score of this step; failures are no parents."""
        members = (m.policy for m in self.settlement.population.fresh(island))
        known = dict.fromkeys([*step.guests.values(), *members])
        ranked = sorted(
            ((p, step.ratios[p.digest]) for p in known if step.ratios.get(p.digest, inf) < inf),
            key=lambda item: (item[1], item[0].digest),
        )
        chosen = select(ranked, self.config.population, self.config.explore, rng)
        full = step.stages.full
        return [
            Parent(p, ratio, self.board.score(p, full), tuple(self.board.window_ratios(p, full)))
            for p, ratio in chosen
        ]

    def _admit(self, step: Step, candidates: Sequence[PolicySource], island: int) -> list[PolicySource]:
        homes = {c.digest: self.settlement.home_of_child(step, c, island) for c in candidates}
        return self.cascade.admit(step, candidates, homes)

    def _affordable(self, step: Step) -> int:
        """How many candidates may be asked for. Evaluations are kept back for the last stages of the
        incumbent and of one finalist, or two; with none to be proven, these are free in the end, and a late
        winner is scored again in the next step."""
        last = len(step.stages.last)
        reserve = (2 if len(step.finalists) < 2 else 3) * last
        room = (self.board.left - reserve) // len(step.rungs)
        if room < 1 and not step.finalists:
            room = self.board.left // len(step.rungs)
        return min(self.config.batch, room)

    def _has_time(self, step: Step, count: int) -> bool:
        """Whether so many candidates can come through to the last stages."""
        return self.board.has_time(max(1, count) * windows_in(task for _, task in step.tasks))
