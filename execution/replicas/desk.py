"""Asks the current policy, and answers itself where it does not; the policy is swapped between two requests."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence

import structlog

from loop.contracts import (
    BatchedPolicy,
    Memo,
    Policy,
    PolicyFaults,
    PolicyTimeout,
    ReplicaView,
    RequestView,
)

_log = structlog.get_logger(__name__)
_EXAMPLES = 5
_PAUSES = 1024
_TIER_S = 1e9
_SLOWEST = 1e-9
_WARM_UPS = 30
_QUICK_S, _QUICK_ONES = 0.001, 3


class PolicyDesk:
    """The policy that decides now. All calls are synchronous: a policy that may be slow brings its own deadline
    (SandboxedPolicy, 50 ms)."""

    def __init__(self, policy: Policy, memo: Memo) -> None:
        self._policy = policy
        self._batched = policy if isinstance(policy, BatchedPolicy) else None
        self._memo = memo
        self._errors = self._timeouts = self._infeasible = 0
        self._examples: list[str] = []
        self.swaps = 0
        self.decisions = 0
        self.decision_s = 0.0
        """Time in decisions, in all."""
        self.swap_pauses_s: deque[float] = deque(maxlen=_PAUSES)
        """Of the latest swaps: the swap itself and the first decision of the new policy."""
        self._swap_s: float | None = None

    @property
    def policy(self) -> Policy:
        """Decides now."""
        return self._policy

    @property
    def memo(self) -> Memo:
        """Its memory."""
        return self._memo

    @property
    def faults(self) -> PolicyFaults:
        """Decisions that had to be made here, since the policy gave none."""
        return PolicyFaults(self._errors, self._timeouts, self._infeasible, tuple(self._examples))

    def use(self, policy: Policy, memo: Memo) -> None:
        """Decide by this policy from the next request on."""
        began_s = time.perf_counter()
        self._batched = policy if isinstance(policy, BatchedPolicy) else None
        self._policy, self._memo = policy, memo
        self.swaps += 1
        self._swap_s = time.perf_counter() - began_s

    def decide(self, request: RequestView, replicas: Sequence[ReplicaView]) -> tuple[int, float]:
        """(index into `replicas`, priority; REJECT refuses the request)."""
        began_s = time.perf_counter()
        try:
            if self._batched is not None:
                index, priority = self._batched.dispatch(request, replicas, self._memo)
            else:
                index = self._policy.route(request, replicas, self._memo)
                if index.__class__ is int and 0 <= index < len(replicas):
                    priority = self._policy.priority(request, replicas[index], self._memo)
                else:
                    priority = 0.0
        except Exception as error:  # noqa: BLE001 - a policy is foreign code: anything may come out of it
            self._note(error)
            index, priority = stand_in(request, replicas)
        if not (index.__class__ is int and 0 <= index < len(replicas)) or not _in_order(priority):
            self._infeasible += 1
            self._example(f"answered ({index!r:.40}, {priority!r:.40}) for {len(replicas)} replicas")
            index, priority = stand_in(request, replicas)
        taken_s = time.perf_counter() - began_s
        self.decisions += 1
        self.decision_s += taken_s
        if self._swap_s is not None:
            self.swap_pauses_s.append(self._swap_s + taken_s)
            self._swap_s = None
        return index, priority

    def _note(self, error: Exception) -> None:
        if isinstance(error, PolicyTimeout):
            self._timeouts += 1
        else:
            self._errors += 1
        self._example(f"{type(error).__name__}: {error}")

    def _example(self, text: str) -> None:
        if len(self._examples) < _EXAMPLES and text not in self._examples:
            self._examples.append(text)
            _log.warning("policy gave no decision", policy=self._policy.digest, error=text)


def warm_up(policy: Policy, views: Sequence[ReplicaView]) -> None:
    """Ask a policy, on a memo that is thrown away, until it answers quickly: before `use`, in a thread.

    A worker process that was just forked waits for its first turn on a busy machine, tens of milliseconds, and touches
    memory for the first time. Measured at a load of 23 on two cores: first decisions of 20 ms (p98), 0.5 ms after this.
    """
    desk = PolicyDesk(policy, Memo())
    for model in dict.fromkeys(view.model for view in views):
        own = tuple(view for view in views if view.model == model)
        quick = 0
        for number in range(_WARM_UPS):
            began_s = time.perf_counter()
            desk.decide(RequestView(number, model, 0.0, 0.0, 1, 1.0, 0, 0), own)
            quick = quick + 1 if time.perf_counter() - began_s < _QUICK_S else 0
            if quick == _QUICK_ONES:
                break
            time.sleep(_QUICK_S)


def stand_in(request: RequestView, replicas: Sequence[ReplicaView]) -> tuple[int, float]:
    """The least backlog in seconds; first come, first served within a tier."""

    def backlog_s(index: int) -> float:
        r = replicas[index]
        return (
            r.ready_in_s
            + r.waiting_tokens / (r.prefill_tokens_per_s or _SLOWEST)
            + r.outstanding_tokens / (r.decode_tokens_per_s or _SLOWEST)
        )

    return min(range(len(replicas)), key=backlog_s), request.arrival_s - _TIER_S * request.tier


def _in_order(priority: object) -> bool:
    """A number, and no NaN or -inf: +inf is REJECT."""
    return isinstance(priority, float | int) and priority > -math.inf
