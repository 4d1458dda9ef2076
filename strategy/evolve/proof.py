"""The proof: what a winner of the full stage must show before it may serve."""

from __future__ import annotations

from math import log, sqrt
from statistics import fmean, stdev

from loop.contracts import Death, PolicySource
from strategy.evolve.archive import Archive
from strategy.evolve.scoreboard import Scoreboard, windows_in
from strategy.evolve.settlement import Settlement
from strategy.evolve.step import Recorder, Step
from strategy.evolve.terms import EvolverConfig, Stages

_SAME = 1e-6
"""Log ratios below this are those of two policies that did the same in a window."""


class Proof:
    """Judges finalists on the full stage, the held-out window and the perturbed worlds together."""

    def __init__(self, config: EvolverConfig, board: Scoreboard, stages: Stages) -> None:
        self._config = config
        self._board = board
        self._stages = stages

    def verdict(self, policy: PolicySource) -> tuple[float, str]:
        """(mean ratio over all stages, why it is not promoted; empty: it is)."""
        mean, lost = self._stage_by_stage(policy)
        return mean, lost or self._doubt(policy) or self._worst_window(policy)

    def lost_already(self, policy: PolicySource) -> str:
        """Why a finalist cannot win any more, going by the held-out window alone; empty: it can."""
        task = self._stages.held_out
        if task is None or self._board.evaluation(policy, task) is None:
            return ""
        return self._loss(policy, "held_out", self._board.ratio(policy, task))

    def _stage_by_stage(self, policy: PolicySource) -> tuple[float, str]:
        """Each stage must be won, the perturbed worlds on average, and all together by the margin."""
        ratios: dict[str, list[float]] = {}
        for stage, task in self._stages.proof:
            ratios.setdefault(stage, []).append(self._board.ratio(policy, task))
        mean = fmean(value for values in ratios.values() for value in values)
        for stage, values in ratios.items():
            lost = self._loss(policy, stage, fmean(values))
            if lost:
                return mean, lost
        if mean > 1.0 - self._config.margin:
            return mean, f"{mean:.3f} of the incumbent over all stages is within the margin"
        return mean, ""

    def _loss(self, policy: PolicySource, stage: str, ratio: float) -> str:
        if ratio < 1.0 or ratio <= 1.0 + self._config.slack:
            return ""
        full = self._board.ratio(policy, self._stages.full)
        return f"won the full stage with {full:.3f}, but {ratio:.3f} in {stage}"

    def _doubt(self, policy: PolicySource) -> str:
        """The mean log ratio over all windows must lie below zero by some standard errors: the best of many
        candidates looks better than it is."""
        logs = [log(r) for _, task in self._stages.proof for r in self._board.window_ratios(policy, task)]
        if self._config.noise is not None:
            logs = [value for value in logs if abs(value) > _SAME]
        if len(logs) < 2 and self._config.noise is None:
            return ""
        mean = fmean(logs) if logs else 0.0
        spread = self._config.noise if self._config.noise is not None else stdev(logs)
        error = spread / sqrt(max(1, len(logs)))
        if mean + self._config.confidence * error < 0.0:
            return ""
        return (
            f"a gain of {-mean:.1%} with a standard error of {error:.1%} over {len(logs)} windows is no proof"
        )

    def _worst_window(self, policy: PolicySource) -> str:
        ratios = [r for _, task in self._stages.proof for r in self._board.window_ratios(policy, task)]
        worst = max(ratios, default=0.0)
        if worst <= self._config.worst_window:
            return ""
        return f"one window is {worst:.2f} times as bad as the incumbent's"


class Finals:
    """Lets the finalists of a step try the last stages, the best first, and promotes the first that has its
    proof."""

    def __init__(
        self,
        config: EvolverConfig,
        board: Scoreboard,
        archive: Archive,
        recorder: Recorder,
        settlement: Settlement,
    ) -> None:
        self._config = config
        self._board = board
        self._archive = archive
        self._recorder = recorder
        self._settlement = settlement

    def decide(self, step: Step, reason: str) -> tuple[PolicySource | None, float, str]:
        """(who is promoted or None, its mean ratio over all stages, why); `reason`: what ended the search."""
        proof = Proof(self._config, self._board, step.stages)
        finalists = {p.digest: p for p in step.finalists if step.ratios[p.digest] < 1.0}.values()
        ranked = sorted(finalists, key=lambda p: (step.ratios[p.digest], p.digest))
        for finalist in ranked[: self._config.finalists]:
            hindrance = self._evaluate(step, finalist, proof)
            if hindrance:
                reason += f"; {hindrance}"
                break
            ratio, failure = proof.verdict(finalist)
            failure = proof.lost_already(finalist) or failure
            if not failure:
                detail = f"promoted: {ratio:.3f} of the incumbent over all stages"
                self._archive.add_outcome(finalist.digest, None, detail, step.generation)
                return finalist, ratio, f"{finalist.name}: {ratio:.3f} of the incumbent; {finalist.note}"
            self._recorder.bury(step, finalist, Death.OVERFIT, failure)
            self._settlement.demote(step, finalist)
        return None, 1.0, f"incumbent kept; {reason}"

    def _evaluate(self, step: Step, finalist: PolicySource, proof: Proof) -> str:
        """Evaluate a finalist and the incumbent in the last stages, until it has lost; what hinders it, or
        empty."""
        both = (step.incumbent, finalist)
        need = [task for _, task in step.stages.last for _ in self._board.missing(both, task)]
        if len(need) > self._board.left:
            return "no evaluations left for the last stages"
        if need and not self._board.has_time(windows_in(need)):
            return "stopped" if self._board.stopped else "no time left for the last stages"
        for stage, task in step.stages.last:
            self._board.evaluate(both, stage, task)
            unscored = self._board.unscored([(stage, task)])
            if unscored:
                return unscored
            if self._board.evaluation(finalist, task) is None:
                return "cut off in the last stages"
            if proof.lost_already(finalist):
                break
        return ""
