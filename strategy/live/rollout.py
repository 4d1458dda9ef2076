"""The stages of a rollout as a pure function: (where a policy stands, what was seen) -> where it stands now.

SHADOW -> CANARY -> PROMOTED -> KEPT
|         |          |         |
+-> REFUSED <-+      +-> ROLLED_BACK
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from loop.contracts import PolicySource
from loop.contracts.live import Stage
from strategy.live.config import CanaryKind, LiveConfig
from strategy.live.sequential import REQUEST_CLIP, WINDOW_CLIP, BettingTest


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen of a policy since the last monitoring point."""

    windows: int = 0
    """Windows that it has spent in its stage."""
    asked: int = 0
    """Decisions in shadow."""
    disagreed: int = 0
    """Of these, how many were not the champion's."""
    late: int = 0
    faults: int = 0
    fault: str = ""
    """The first of them, in words."""
    pairs: tuple[float, ...] = ()
    """Log ratios, challenger to champion; below 0: it was faster."""
    saved: float = 0.0
    """Watched: the share that the best predecessor would have saved on the latest windows."""
    saved_by: PolicySource | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """Where one policy stands, and all evidence of this stage."""

    policy: PolicySource
    reason: str = ""
    """Why it was proposed."""
    gain: float = 0.0
    """Share of the objective that it was predicted to save."""
    stage: Stage = Stage.SHADOW
    windows: int = 0
    """In this stage."""
    asked: int = 0
    disagreed: int = 0
    late: int = 0
    faults: int = 0
    test: BettingTest = field(default_factory=lambda: BettingTest(WINDOW_CLIP))
    saved: float = 0.0

    @property
    def evidence(self) -> Mapping[str, float]:
        """Named numbers, for records and tables."""
        told: dict[str, float] = {"windows": self.windows, "faults": self.faults}
        if self.stage is Stage.SHADOW:
            told |= {"asked": self.asked, "disagreed": self.disagreed, "late": self.late}
        if self.test.pairs:
            test = self.test
            told |= {
                "pairs": test.pairs,
                "ratio": math.exp(test.mean),
                "evidence_better": test.better,
                "evidence_worse": test.worse,
            }
        if self.saved:
            told["predecessor_would_save"] = self.saved
        return told


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of stage, in words."""

    before: Stage
    after: Stage
    reason: str
    evidence: Mapping[str, float]
    back_to: PolicySource | None = None
    """Rolled back: who would have done better; None: the last good one."""


def advance(rollout: Rollout, evidence: Evidence, config: LiveConfig) -> tuple[Rollout, Transition | None]:
    """Weigh the evidence; at most one change of stage at a time. Call again with empty evidence until there
    is none: stages without windows are passed through at once.
    """
    seen = _added(rollout, evidence)
    after, reason = _STEPS[seen.stage](seen, evidence, config)
    if after is seen.stage:
        return seen, None
    back_to = evidence.saved_by if after is Stage.ROLLED_BACK and not evidence.faults else None
    transition = Transition(seen.stage, after, reason, seen.evidence, back_to)
    clip = REQUEST_CLIP if config.canary is CanaryKind.TRAFFIC else WINDOW_CLIP
    fresh = Rollout(seen.policy, seen.reason, seen.gain, after, test=BettingTest(clip))
    return fresh, transition


def _added(rollout: Rollout, evidence: Evidence) -> Rollout:
    return replace(
        rollout,
        windows=rollout.windows + evidence.windows,
        asked=rollout.asked + evidence.asked,
        disagreed=rollout.disagreed + evidence.disagreed,
        late=rollout.late + evidence.late,
        faults=rollout.faults + evidence.faults,
        test=rollout.test.after(evidence.pairs),
        saved=evidence.saved or rollout.saved,
    )


def _shadow(now: Rollout, evidence: Evidence, config: LiveConfig) -> tuple[Stage, str]:
    if now.faults:
        return Stage.REFUSED, f"a fault in shadow: {evidence.fault or 'of a decision'}"
    if now.late:
        return Stage.REFUSED, f"{now.late} of {now.asked} decisions in shadow came too late"
    if now.windows < config.shadow_windows:
        return Stage.SHADOW, ""
    after = Stage.PROMOTED if config.canary is CanaryKind.NONE else Stage.CANARY
    if not config.shadow_windows:
        return after, now.reason
    share = now.disagreed / max(1, now.asked)
    return after, (
        f"no fault in {now.asked} decisions of {now.windows} windows in shadow; "
        f"{share:.0%} were not the champion's"
    )


def _canary(now: Rollout, evidence: Evidence, config: LiveConfig) -> tuple[Stage, str]:
    harm = _harm(now, evidence, config)
    if harm:
        return Stage.REFUSED, harm
    test, by_windows = now.test, config.canary is CanaryKind.WINDOWS
    length = test.pairs if by_windows else now.windows
    if test.better >= _enough(config) and length >= config.canary_min_windows:
        return Stage.PROMOTED, f"better than the champion: {_told(test)} (evidence {test.better:.3g} to 1)"
    if length < config.canary_max_windows and now.windows < 2 * config.canary_max_windows:
        return Stage.CANARY, ""
    if not test.pairs:
        return Stage.REFUSED, f"nothing to compare in {now.windows} windows of canary"
    if test.mean > 0.0:
        return Stage.REFUSED, f"no gain in {now.windows} windows of canary: {_told(test)}"
    return Stage.PROMOTED, f"nothing spoke against it in {now.windows} windows of canary: {_told(test)}"


def _harm(now: Rollout, evidence: Evidence, config: LiveConfig) -> str:
    """Why a canary must end at once; empty: it need not."""
    hard = max(evidence.pairs, default=0.0)
    if now.faults > config.canary_faults:
        return f"the champion had to answer {now.faults} times: {evidence.fault}"
    if config.canary is CanaryKind.WINDOWS and hard > math.log1p(config.hard_regret):
        return f"a canary window was {math.expm1(hard):.0%} worse than the champion's"
    if now.test.worse >= _enough(config):
        return f"worse than the champion: {_told(now.test)} (evidence {now.test.worse:.3g} to 1)"
    return ""


def _enough(config: LiveConfig) -> float:
    return 1.0 / (1.0 - config.confidence)


def _watched(now: Rollout, evidence: Evidence, config: LiveConfig) -> tuple[Stage, str]:
    name = now.policy.name
    if now.faults > config.watch_faults:
        return (
            Stage.ROLLED_BACK,
            f"{name} ({now.policy.digest}) made faults while it served: {evidence.fault}",
        )
    if evidence.saved_by is not None and evidence.saved > config.regret:
        better = evidence.saved_by.name
        return (
            Stage.ROLLED_BACK,
            f"{name} disappoints: {better} would have saved {evidence.saved:.1%} since",
        )
    if now.stage is Stage.PROMOTED and config.watch_for is not None and now.windows >= config.watch_for:
        return Stage.KEPT, f"{name} kept its promise for {now.windows} windows"
    return now.stage, ""


def _over(now: Rollout, _evidence: Evidence, _config: LiveConfig) -> tuple[Stage, str]:
    return now.stage, ""


_STEPS = {
    Stage.SHADOW: _shadow,
    Stage.CANARY: _canary,
    Stage.PROMOTED: _watched,
    Stage.KEPT: _watched,
    Stage.ROLLED_BACK: _over,
    Stage.REFUSED: _over,
}


def _told(test: BettingTest) -> str:
    """What a test has seen, in words."""
    change = math.expm1(test.mean)
    return f"{abs(change):.1%} {'slower' if change > 0 else 'faster'} in {test.pairs} pairs"
