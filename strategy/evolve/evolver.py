"""One step of evolution: ask for candidates, send them through the cascade, hand over the one that won.

The parts: `terms` (what a step is told and answers), `scoreboard` (who scored what), `rescoring` (of parents),
`search` (asking), `cascade` (static check to full stage; with `novelty`, and `sequential` for stopping early),
`proof` (who is promoted), `population` and `settlement` (who lives where), and the `archive`, from which all of
it is rebuilt after a restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from math import inf

import structlog

from loop.contracts import Death, Evaluator, Observation, PolicySource, Synthesiser
from strategy.evolve.archive import REFUSED, Archive
from strategy.evolve.cascade import Cascade
from strategy.evolve.novelty import Novelty, identity_of
from strategy.evolve.proof import Finals
from strategy.evolve.rescoring import Rescoring
from strategy.evolve.scoreboard import Scoreboard
from strategy.evolve.search import Search
from strategy.evolve.settlement import Settlement
from strategy.evolve.step import Recorder, Step
from strategy.evolve.terms import Budget, EvolverConfig, Progress, Stages, StepOutcome

__all__ = ["Budget", "Evolver", "EvolverConfig", "Progress", "Stages", "StepOutcome"]

_log = structlog.get_logger(__name__)


class Evolver:
    """Evolves policies step by step, from where the archive left off.

    The population lives on between steps and restarts, but its scores do not: a score belongs to the windows
    and the world that it was made on. `world_key` names the set-up that window numbers refer to: with one,
    what the archive holds of the same set-up is not paid for again. `clock` gives wall seconds, `pause`
    sleeps, `watch` is told how far a step has come.
    """

    def __init__(
        self,
        synthesiser: Synthesiser,
        evaluator: Evaluator,
        archive: Archive,
        config: EvolverConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        world_key: str = "",
        pause: Callable[[float], None] = time.sleep,
        watch: Callable[[Progress], None] | None = None,
    ) -> None:
        self._synthesiser = synthesiser
        self._archive = archive
        self._config = config = config or EvolverConfig()
        self._clock = clock
        self._world_key = world_key
        self._watch = watch
        self._board = Scoreboard(evaluator, archive, clock=clock, world_key=world_key, safety=config.safety)
        self._novelty = Novelty(archive, world_key)
        self._settlement = Settlement(config, archive, self._board)
        self._rescoring = Rescoring(config, self._board, archive, self._settlement)
        recorder = Recorder(archive, synthesiser, self._board)
        self._finals = Finals(config, self._board, archive, recorder, self._settlement)
        self._search = Search(
            config,
            synthesiser,
            self._board,
            Cascade(config, self._board, archive, self._novelty, recorder, self._settlement),
            self._settlement,
            self._rescoring,
            clock,
            pause,
            self._report,
            self._settlement.next_turn,
        )
        self._generation = archive.generation()

    @property
    def population(self) -> tuple[PolicySource, ...]:
        """All policies kept, those scored last first, the best of them first."""
        return tuple(self._settlement.population.ranked())

    @property
    def generation(self) -> int:
        """Of the last step."""
        return self._generation

    def forget_scores(self) -> None:
        """Score everything again, e.g. after the simulated world was calibrated anew."""
        self._board.forget()
        self._novelty.forget()

    def refuse(self, policy: PolicySource, detail: str) -> None:
        """Take a promotion back: the policy failed a test of the caller's, and leaves the population."""
        self._archive.add_outcome(policy.digest, Death.OVERFIT, REFUSED + detail, self._generation)
        self._settlement.expel(policy, self._generation)

    def step(
        self,
        incumbent: PolicySource,
        parents: Iterable[PolicySource],
        obs: Observation | None,
        stages: Stages,
        budget: Budget,
        *,
        stop: Callable[[], bool] = lambda: False,
        regime: str = "",
    ) -> StepOutcome:
        """Search until the budget or the deadline is near, then let the best winners try the last stages;
        as soon as `stop` says so, begin nothing more. `regime` names the kind of load, where that is known:
        who won under the same is tried again first."""
        began = self._clock()
        self._generation = max(self._generation, self._archive.generation()) + 1
        rungs = stages.rungs(self._config.rung_windows)
        step = Step(self._generation, incumbent, obs, stages, rungs, budget, regime)
        cut_off = self._archive.unfinished()
        self._begin(step, parents, stop)
        unscored = self._score_incumbent(step)
        if unscored:
            best, ratio, reason = None, 1.0, f"incumbent kept; {unscored}"
        else:
            self._rescoring.begin(step)
            reason = self._search.run(step, cut_off)
            best, ratio, reason = self._finals.decide(step, reason)
            self._settlement.migrate(step.generation)
        return self._end(step, best, ratio, reason, self._clock() - began)

    def _begin(self, step: Step, parents: Iterable[PolicySource], stop: Callable[[], bool]) -> None:
        tasks = frozenset(task for _, task in step.tasks)
        self._archive.begin_step(
            step.generation,
            step.incumbent.digest,
            step.tasks,
            world_key=self._world_key,
            regime=step.regime,
            budget=step.budget.evaluations,
        )
        self._board.begin(step.generation, step.incumbent, tasks, step.budget, stop)
        self._board.on_result = lambda: self._report(step)
        self._novelty.begin(tasks)
        for policy in (step.incumbent, *parents):
            if policy.digest not in step.guests:
                step.guests[policy.digest] = policy
                identity = identity_of(policy.source)
                self._archive.add(policy, identity, step.generation)
                self._novelty.claim(policy, identity)

    def _score_incumbent(self, step: Step) -> str:
        """What all else is compared with; why that cannot be, or empty."""
        for stage, task in step.rungs:
            self._board.evaluate([step.incumbent], stage, task)
            score = self._board.score(step.incumbent, task)
            if score is not None:
                self._novelty.twin(step.incumbent, task, score)
        unscored = self._board.unscored(step.rungs)
        if not unscored:
            self._settlement.population.begin(step.generation)
            self._settlement.settle(step, step.incumbent)
        return unscored

    def _report(self, step: Step) -> None:
        if self._watch is None:
            return
        names = {step.incumbent.digest: step.incumbent.name}
        names |= {p.digest: p.name for p in (*step.guests.values(), *step.finalists)}
        ratio, digest = min(((step.ratios.get(d, inf), d) for d in names), default=(1.0, ""))
        self._watch(
            Progress(
                step.generation,
                self._board.spent,
                step.budget.evaluations,
                step.candidates,
                names.get(digest, ""),
                ratio,
                self._synthesiser.pending,
            )
        )

    def _end(
        self, step: Step, best: PolicySource | None, ratio: float, reason: str, wall_s: float
    ) -> StepOutcome:
        """Close the step: in the archive, in the log, and for the caller."""
        outcome = StepOutcome(
            best,
            reason,
            self._board.spent,
            step.candidates,
            dict(step.deaths),
            ratio,
            step.generation,
            self._board.reused,
            step.resumed,
            wall_s,
        )
        self._archive.end_step(
            step.generation,
            evaluations=outcome.evaluations,
            candidates=outcome.candidates,
            best=best.digest if best is not None else None,
            ratio=ratio,
            reason=reason,
            wall_s=wall_s,
        )
        _log.info(
            "evolution step", generation=step.generation, evaluations=outcome.evaluations, outcome=reason
        )
        return outcome
