"""A challenger's trials: what serves meanwhile, and the evidence that comes of it, one class for each kind."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil
from typing import Protocol

from loop.contracts import Policy, PolicyFaults, RequestRecord, WindowResult
from loop.contracts.live import GuardedArm, GuardFactory
from strategy.live.arms import TrafficCanary
from strategy.live.config import LiveConfig
from strategy.live.pairs import MatchedPairs
from strategy.live.rollout import Evidence
from strategy.live.sequential import REQUEST_CLIP
from strategy.live.shadow import PlanCheck, Shadow, ShadowCounts, ShadowRecorder


class Trial(Protocol):
    """One challenger in one stage."""

    def serving(self) -> Policy:
        """What serves in the window that begins: the same object as before where nothing is to change."""

    def faults_of(self, result: WindowResult) -> int:
        """How many of a window's faults are the challenger's."""

    def window_ended(self, result: WindowResult) -> None:
        """A window of the trial is over."""

    def finished(self, record: RequestRecord) -> None:
        """A request is over."""

    def evidence(self, now_s: float) -> Evidence:
        """What has come out since the last call."""


class ShadowTrial:
    """The champion serves and is listened to; the challenger answers in another thread after each window."""

    def __init__(
        self,
        champion: Policy,
        challenger: Policy,
        config: LiveConfig,
        check: PlanCheck,
        pool: ThreadPoolExecutor,
        *,
        waits: bool,
    ) -> None:
        """`waits`: evidence waits for answers under way, as a replay on virtual time must."""
        self._recorder = ShadowRecorder(champion, challenger.digest, config)
        self._shadow = Shadow(challenger, check, late_s=config.shadow_late_s)
        self._pool = pool
        self._waits = waits
        self._asked: list[Future[ShadowCounts]] = []

    def serving(self) -> Policy:
        """The champion, listened to."""
        return self._recorder

    def faults_of(self, _result: WindowResult) -> int:
        """None: a shadow touches no traffic."""
        return 0

    def window_ended(self, _result: WindowResult) -> None:
        """Have the challenger asked what the champion was asked."""
        self._asked.append(self._pool.submit(self._shadow.ask, self._recorder.take()))

    def finished(self, record: RequestRecord) -> None:
        """Nothing to learn: the champion decided it."""

    def evidence(self, _now_s: float) -> Evidence:
        """The answers that are there."""
        done = [f for f in self._asked if self._waits or f.done()]
        self._asked = [f for f in self._asked if f not in done]
        counts = [f.result() for f in done]
        return Evidence(
            windows=len(counts),
            asked=sum(c.asked for c in counts),
            disagreed=sum(c.disagreed for c in counts),
            late=sum(c.late for c in counts),
            faults=sum(c.faults for c in counts),
            fault=next((c.fault for c in counts if c.fault), ""),
        )


class _Counter:
    """What was added to a count of faults since the last look."""

    def __init__(self) -> None:
        self._seen = 0

    def since(self, faults: PolicyFaults) -> int:
        fresh, self._seen = faults.total - self._seen, faults.total
        return fresh


class TrafficTrial:
    """A share of the requests goes to the challenger."""

    def __init__(self, champion: Policy, challenger: Policy, config: LiveConfig, guard: GuardFactory) -> None:
        self._pairs = MatchedPairs(REQUEST_CLIP)
        self._canary = TrafficCanary(
            champion,
            challenger,
            share=config.canary_share,
            guard=guard,
            routed=self._pairs.routed,
        )
        self._counter = _Counter()
        self._windows = self._faults = 0

    def serving(self) -> Policy:
        """Both."""
        return self._canary

    def faults_of(self, _result: WindowResult) -> int:
        """Those that the champion had to answer since the last window."""
        fresh = self._counter.since(self._canary.faults)
        self._faults += fresh
        return fresh

    def window_ended(self, _result: WindowResult) -> None:
        """Count it."""
        self._windows += 1

    def finished(self, record: RequestRecord) -> None:
        """Half a pair."""
        self._pairs.finished(record)

    def evidence(self, now_s: float) -> Evidence:
        """Pairs and faults."""
        windows, faults = self._windows, self._faults
        self._windows = self._faults = 0
        fault = "; ".join(self._canary.faults.examples[:2])
        return Evidence(windows=windows, faults=faults, fault=fault, pairs=self._pairs.take(now_s))


class WindowTrial:
    """Whole windows are the challenger's; the champion answers where it fails, and serves the other windows."""

    def __init__(
        self,
        champion: Policy,
        challenger: Policy,
        config: LiveConfig,
        guard: GuardFactory,
        compared: Callable[[], tuple[float, ...]],
    ) -> None:
        """`compared` hands over the pairs that simulated worlds have given since the last call."""
        self._champion = champion
        self._challenger = challenger
        self._guard = guard
        self._share = config.canary_share
        self._compared = compared
        self._arm: GuardedArm | None = None
        self._counter = _Counter()
        self._number = 0
        self._windows = self._faults = 0
        self._examples: tuple[str, ...] = ()

    def serving(self) -> Policy:
        """The challenger under the champion's guard, or the champion: windows are dealt out evenly."""
        mine = ceil((self._number + 1) * self._share) > ceil(self._number * self._share)
        if not mine:
            self._arm = None
            return self._champion
        if self._arm is None:  # afresh each time, since its faults are counted from zero
            self._arm, self._counter = self._guard(self._challenger, self._champion), _Counter()
        return self._arm

    def faults_of(self, _result: WindowResult) -> int:
        """Those that the champion had to answer in this window."""
        if self._arm is None:
            return 0
        fresh = self._counter.since(self._arm.faults)
        self._faults += fresh
        self._examples = self._arm.faults.examples or self._examples
        return fresh

    def window_ended(self, _result: WindowResult) -> None:
        """On to the next one."""
        self._windows += self._arm is not None
        self._number += 1

    def finished(self, record: RequestRecord) -> None:
        """Windows are compared, not requests."""

    def evidence(self, _now_s: float) -> Evidence:
        """Pairs and faults."""
        windows, faults = self._windows, self._faults
        self._windows = self._faults = 0
        return Evidence(
            windows=windows, faults=faults, fault="; ".join(self._examples[:2]), pairs=self._compared()
        )
