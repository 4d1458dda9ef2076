"""One policy in two places: one plans at monitoring points, the other routes meanwhile.

Requests are routed on the event loop, at any moment; a plan may take seconds, in the controller's thread. A policy in a
sandbox answers one question at a time. So the same source is loaded twice, and what each half writes into the memo is
brought to the other at monitoring points: together they are the one policy that the twin knows.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from loop.contracts import (
    BatchedPolicy,
    Memo,
    Observation,
    Plan,
    Policy,
    PolicyCrashed,
    PolicyFault,
    RemotePolicy,
    ReplicaView,
    RequestView,
)


@runtime_checkable
class _Closable(Protocol):
    def close(self) -> None: ...


class DuplexPolicy:
    """A policy whose routing waits for no plan. Implements BatchedPolicy and RemotePolicy.

    `should_replan`, `plan` and `sync` belong to one thread, `route`, `priority` and `dispatch` to any others. The
    caller's memo is the planning half's; the routing half keeps a copy, and news from there come with `sync`.
    """

    def __init__(self, planner: Policy, router: Policy) -> None:
        """Two loaded copies of one source; the same object twice where it keeps no state."""
        self.name = planner.name
        self.digest = planner.digest
        self._planner = planner
        self._router = router
        self._batched = router if isinstance(router, BatchedPolicy) else None
        self._lock = threading.Lock()  # around the routing half, and all that follows
        self._routing = Memo()
        self._common: dict[str, float] = {}
        """What both memos held when they last met."""
        self._closed = False

    # -- at monitoring points ----------------------------------------------------------------------------

    @property
    def solve_cpu_s(self) -> float:
        """CPU time of the planning half."""
        return self._planner.solve_cpu_s if isinstance(self._planner, RemotePolicy) else 0.0

    def sync(self, memo: Memo) -> None:
        """Bring what routing wrote since the last call into the caller's memo, and the other way round."""
        with self._lock:
            self._hear()
            merged = _merged(memo, self._common, self._routing)
            if dict(memo) != merged:
                memo.clear()
                memo.update(merged)
            self._meet(merged)

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        """The planning half's answer."""
        answer = self._planner.should_replan(obs, memo)
        self._tell(memo)
        return answer

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        """The planning half's plan."""
        plan = self._planner.plan(obs, budget_s, memo)
        self._tell(memo)
        return plan

    # -- meanwhile ---------------------------------------------------------------------------------------

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], _memo: Memo) -> int:
        """The routing half's choice."""
        with self._lock:
            self._alive()
            return self._router.route(request, replicas, self._routing)

    def priority(self, request: RequestView, replica: ReplicaView, _memo: Memo) -> float:
        """The routing half's order."""
        with self._lock:
            self._alive()
            return self._router.priority(request, replica, self._routing)

    def dispatch(
        self, request: RequestView, replicas: Sequence[ReplicaView], _memo: Memo
    ) -> tuple[int, float]:
        """Both in one."""
        with self._lock:
            self._alive()
            if self._batched is not None:
                return self._batched.dispatch(request, replicas, self._routing)
            index = self._router.route(request, replicas, self._routing)
            return index, self._router.priority(request, replicas[index], self._routing)

    def close(self) -> None:
        """End both halves; the policy answers no more."""
        with self._lock:
            self._closed = True
            for half in {id(h): h for h in (self._planner, self._router)}.values():
                if isinstance(half, _Closable):
                    half.close()

    # -- the memo ----------------------------------------------------------------------------------------

    def _alive(self) -> None:
        if self._closed:
            raise PolicyCrashed(f"policy {self.name}: it was closed")

    def _hear(self) -> None:
        """Bring the routing half's memo up to date with its process."""
        if isinstance(self._router, RemotePolicy) and not self._closed:
            self._router.sync(self._routing)

    def _tell(self, memo: Memo) -> None:
        """Hand on to routing what planning wrote; as a rule nothing, and then nobody is disturbed."""
        with self._lock:
            if dict(memo) == self._common:
                return
            with contextlib.suppress(PolicyFault):  # of routing: no fault of the plan, and met again there
                self._hear()
            wanted = _merged(memo, self._common, self._routing)
            self._common = dict(memo)
            self._routing = Memo()  # another object: the routing half sees that it is news
            self._routing.update(wanted)

    def _meet(self, merged: Mapping[str, float]) -> None:
        self._common = dict(merged)
        if dict(self._routing) != self._common:
            self._routing = Memo()
            self._routing.update(merged)


def _merged(
    memo: Mapping[str, float], common: Mapping[str, float], other: Mapping[str, float]
) -> dict[str, float]:
    """`memo` with what has changed from `common` to `other`; as many keys as a memo holds, the memo's own first."""
    merged = dict(memo)
    for key in common.keys() - other.keys():
        merged.pop(key, None)
    for key, value in other.items():
        if common.get(key) != value and (key in merged or len(merged) < Memo.LIMIT):
            merged[key] = value
    return merged
