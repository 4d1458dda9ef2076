"""Policies that hold two policies: what serves while a challenger is tried."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from loop.contracts import (
    BatchedPolicy,
    Memo,
    Observation,
    Plan,
    Policy,
    PolicyFaults,
    RemotePolicy,
    ReplicaView,
    RequestView,
)
from loop.contracts.live import GuardFactory

Routed = Callable[[RequestView, bool], None]
"""(request, whether the challenger routed it)."""

_WHOLE = 1 << 64


def in_share(request_id: int, share: float, salt: str) -> bool:
    """Whether a request falls into a share of the traffic: by a hash, so the same everywhere and each time.

    Another `salt` chooses other requests: canaries do not always hit the same customers.
    """
    mark = hashlib.blake2b(f"{salt}/{request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(mark, "big") < share * _WHOLE


class ServingArm:
    """The champion as it serves: answers, keeps its identity, and plans. Implements BatchedPolicy and
    RemotePolicy. The base of what serves while a challenger is tried.
    """

    def __init__(self, champion: Policy) -> None:
        self._champion = champion
        self._batched = champion if isinstance(champion, BatchedPolicy) else None
        self.name = champion.name
        self.digest = champion.digest

    @property
    def solve_cpu_s(self) -> float:
        """CPU time of the champion's planning in another process."""
        return self._champion.solve_cpu_s if isinstance(self._champion, RemotePolicy) else 0.0

    def sync(self, memo: Memo) -> None:
        """Bring the champion's memo up to date."""
        if isinstance(self._champion, RemotePolicy):
            self._champion.sync(memo)

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        """The champion's answer."""
        return self._champion.should_replan(obs, memo)

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        """The champion's plan."""
        return self._champion.plan(obs, budget_s, memo)

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
        """The champion's choice."""
        return self._champion.route(request, replicas, memo)

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        """The champion's order."""
        return self._champion.priority(request, replica, memo)

    def dispatch(
        self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo
    ) -> tuple[int, float]:
        """Both in one."""
        if self._batched is not None:
            return self._batched.dispatch(request, replicas, memo)
        index = self._champion.route(request, replicas, memo)
        return index, self._champion.priority(request, replicas[index], memo)


class _WithMemo(ServingArm):
    """A champion that answers for a challenger, and does so on its own memo."""

    def __init__(self, champion: Policy) -> None:
        super().__init__(champion)
        self.memo = Memo()

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], _memo: Memo) -> int:
        return super().route(request, replicas, self.memo)

    def priority(self, request: RequestView, replica: ReplicaView, _memo: Memo) -> float:
        return super().priority(request, replica, self.memo)


class TrafficCanary(ServingArm):
    """A share of the requests is routed and ordered by the challenger, the others by the champion.

    The champion plans, since a plan cannot be split. Whatever the challenger answers badly or too late, the
    champion answers at once, and `faults` counts it. Each has a memo of its own.
    """

    def __init__(
        self,
        champion: Policy,
        challenger: Policy,
        *,
        share: float,
        guard: GuardFactory,
        routed: Routed,
    ) -> None:
        super().__init__(champion)
        self._salt = challenger.digest
        self._share = share
        self._answering = _WithMemo(champion)
        self._challenger = guard(challenger, self._answering)
        self._challenger_memo = Memo()
        self._routed = routed

    @property
    def faults(self) -> PolicyFaults:
        """The challenger's, each answered by the champion."""
        return self._challenger.faults

    def in_canary(self, request_id: int) -> bool:
        """Whether the challenger has a request."""
        return in_share(request_id, self._share, self._salt)

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
        """By whoever has the request."""
        challenged = self.in_canary(request.id)
        self._routed(request, challenged)
        if not challenged:
            return super().route(request, replicas, memo)
        self._answering.memo = memo
        return self._challenger.route(request, replicas, self._challenger_memo)

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        """By whoever has the request."""
        if not self.in_canary(request.id):
            return super().priority(request, replica, memo)
        self._answering.memo = memo
        return self._challenger.priority(request, replica, self._challenger_memo)

    def dispatch(
        self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo
    ) -> tuple[int, float]:
        """By whoever has the request."""
        challenged = self.in_canary(request.id)
        self._routed(request, challenged)
        if not challenged:
            return super().dispatch(request, replicas, memo)
        self._answering.memo = memo
        return self._challenger.dispatch(request, replicas, self._challenger_memo)
