"""What is known of windows that are over: the evidence on the champion, and questions to simulated worlds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loop.contracts import PolicySource, WindowResult
from loop.contracts.live import LiveQuestion, Stage
from strategy.live.compare import WindowLog, saved_share, window_pairs
from strategy.live.config import CanaryKind, LiveConfig
from strategy.live.rollout import Evidence
from strategy.live.standing import Standing

_REFERENCE_WINDOWS = 4
"""Of the champion, to learn the twin's bias from."""
_ENOUGH_WINDOWS = 2
"""A watched champion is not judged by fewer."""


class Watch:
    """Collects evidence between two monitoring points."""

    def __init__(self, standing: Standing, config: LiveConfig, spared: frozenset[str]) -> None:
        """`spared`: digests of policies that faults do not take back, since nothing safer is there."""
        self._standing = standing
        self._config = config
        self._spared = spared
        self._log = WindowLog()
        self._pairs: list[float] = []
        self._count = self._faults = 0
        self._fault = ""
        self._saved: tuple[float, PolicySource | None] = (0.0, None)

    def window_ended(self, result: WindowResult, objective: float, theirs: int) -> None:
        """Count a window; `theirs` of its faults were the challenger's."""
        self._log.add(result.index, result.policy, objective)
        champion = self._standing.champion.digest
        self._count += result.policy == champion
        own = result.faults.total - theirs
        if own > 0 and champion not in self._spared:
            self._faults += own
            self._fault = "; ".join(result.faults.examples[:2])

    def evidence(self) -> Evidence:
        """On the watched champion, since the last call."""
        saved, saved_by = self._saved
        evidence = Evidence(
            windows=self._count, faults=self._faults, fault=self._fault, saved=saved, saved_by=saved_by
        )
        self.begin()
        return evidence

    def begin(self) -> None:
        """Forget what was seen of the champion: another one serves, or it was weighed."""
        self._count = self._faults = 0
        self._fault, self._saved = "", (0.0, None)

    def take_pairs(self) -> tuple[float, ...]:
        """Log ratios of the challenger's windows since the last call."""
        pairs, self._pairs = self._pairs, []
        return tuple(pairs)

    def question(self, tick: int) -> LiveQuestion | None:
        """A canary by windows is compared with what the champion would have done; a watched champion with what
        its predecessors would have done."""
        challenger = self._standing.challenger
        if self._standing.killed:
            return None
        if challenger is not None and challenger.stage is Stage.CANARY:
            return self._about_canary(challenger.policy)
        return self._about_champion(tick)

    def judged(self, question: LiveQuestion, values: Mapping[str, Sequence[float]]) -> None:
        """Take in an answer, unless it is about a policy that has gone since."""
        about, challenger = question.policies[0].digest, self._standing.challenger
        if question.stage is Stage.PROMOTED:
            if about == self._standing.champion.digest:
                self._saved = saved_share(question.policies, values)
        elif challenger is not None and about == challenger.policy.digest:
            self._pairs += window_pairs(question, values, self._log)

    def disappoints(self, question: LiveQuestion, values: Mapping[str, Sequence[float]]) -> bool:
        """Whether this answer will take the champion back."""
        saved, _ = saved_share(question.policies, values)
        return question.stage is Stage.PROMOTED and saved > self._config.regret and not self._standing.pinned

    def _about_canary(self, challenger: PolicySource) -> LiveQuestion | None:
        mine = self._log.unjudged(challenger.digest)
        if self._config.canary is not CanaryKind.WINDOWS or not mine:
            return None
        champion = self._standing.champion
        theirs = self._log.latest(champion.digest, _REFERENCE_WINDOWS)
        return LiveQuestion((challenger, champion), tuple(sorted({*mine, *theirs})), Stage.CANARY)

    def _about_champion(self, tick: int) -> LiveQuestion | None:
        watched, champion = self._standing.watched, self._standing.champion
        if watched is None or watched.stage is not Stage.PROMOTED:
            return None
        since = self._log.latest(champion.digest, self._config.watch_windows)
        rivals = self._standing.rivals(tick)
        if len(since) < _ENOUGH_WINDOWS or not rivals:
            return None
        return LiveQuestion((champion, *rivals), since, Stage.PROMOTED)
