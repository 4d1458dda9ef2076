"""The decisions of one loaded policy, asked through the wire."""

from __future__ import annotations

import json
import marshal
import math
import pickle
import time
from typing import Any

from loop.contracts import Memo, Observation, Plan, ReplicaView, RequestView, Role
from strategy.evolve.worker import wire
from strategy.evolve.worker.quick import answer_to
from strategy.evolve.worker.untrusted import UntrustedPolicy, load_untrusted

_ROLES = {str(role): role for role in Role}
_ROLE_AT = ReplicaView._fields.index("role")
_REPLY_BYTES = wire.DISPATCHED.size - wire.HEADER.size
_NO_PRIORITY = 0.0


class Decisions:
    """A policy and what it works on: its memo, the last observation, the replicas of each model as last sent."""

    def __init__(self) -> None:
        self._policy: UntrustedPolicy | None = None
        self._memo = Memo()
        self._told: dict[str, float] = {}
        self._obs: Observation | None = None
        self._slots: dict[int, tuple[str, tuple[ReplicaView, ...]]] = {}

    def handle(self, kind: int, frame: bytes) -> bytes:
        """Answer one request with a whole frame; whatever the policy raises comes through."""
        if kind == wire.QUICK_DISPATCH:
            return self._dispatch(*answer_to(frame, self._slots))
        if kind == wire.QUICK_ROUTE:
            return self._route(*answer_to(frame, self._slots))
        body = frame[wire.REQUEST_HEAD.size :]
        return _HANDLERS.get(kind, Decisions._monitoring_point)(self, kind, body)

    def _question(self, kind: int, body: bytes) -> bytes:
        answer = self._dispatch if kind == wire.DISPATCH else self._route
        return answer(*self._in_full(body))

    def _sync(self, _kind: int, _body: bytes) -> bytes:
        return self._reply(None, 0.0)

    def _load(self, _kind: int, body: bytes) -> bytes:
        name, source = marshal.loads(body)  # noqa: S302  from the parent, who is trusted
        self.__init__()  # type: ignore[misc]  # a worker that is loaded again remembers nothing
        self._policy = load_untrusted(source, name)
        return wire.REQUEST_HEAD.pack(1, wire.OK)

    def _dispatch(self, number: int, request: RequestView, replicas: tuple[ReplicaView, ...]) -> bytes:
        """The policy gets a tuple: it cannot change what the next request sees."""
        policy = self._policy or self._loaded()
        index = policy.route(request, replicas, self._memo)
        if index.__class__ is not int or not 0 <= index < len(replicas):
            raise ValueError(f"route returned {index!r:.60} for {len(replicas)} replicas")
        priority = policy.priority(request, replicas[index], self._memo)
        return wire.DISPATCHED.pack(_REPLY_BYTES, wire.OK, number, index, priority)

    def _route(self, number: int, request: RequestView, replicas: tuple[ReplicaView, ...]) -> bytes:
        index = (self._policy or self._loaded()).route(request, replicas, self._memo)
        return wire.DISPATCHED.pack(_REPLY_BYTES, wire.OK, number, index, _NO_PRIORITY)

    def _priority(self, _kind: int, body: bytes) -> bytes:
        number, memo, request, view = marshal.loads(body)  # noqa: S302
        self._take(memo)
        answer = self._loaded().priority(RequestView(*request), _view(view), self._memo)
        return wire.DISPATCHED.pack(_REPLY_BYTES, wire.OK, number, 0, answer)

    def _priorities(self, _kind: int, body: bytes) -> bytes:
        memo, view, requests = marshal.loads(body)  # noqa: S302
        self._take(memo)
        policy, replica = self._policy or self._loaded(), _view(view)
        answers = []
        for request in requests:
            try:
                answers.append(float(policy.priority(RequestView._make(request), replica, self._memo)))
            except Exception:  # noqa: BLE001 - one request's fault is not the others'
                answers.append(math.nan)
        return self._reply(answers, 0.0)

    def _in_full(self, body: bytes) -> tuple[int, RequestView, tuple[ReplicaView, ...]]:
        """A question that brings all replicas of its model."""
        number, memo, asked, slot, views = marshal.loads(body)  # noqa: S302
        self._take(memo)
        request = RequestView._make(asked)
        replicas = tuple(_view(view) for view in views)
        self._slots[slot] = request.model, replicas
        return number, request, replicas

    def _monitoring_point(self, kind: int, body: bytes) -> bytes:
        memo, observed, budget_s = marshal.loads(body)  # noqa: S302
        self._take(memo)
        if observed is not None:
            self._obs = pickle.loads(observed)  # noqa: S301
        if self._obs is None:
            raise RuntimeError("no observation was sent yet")
        # the clock of the process stands still between two ticks of the kernel while RLIMIT_CPU is set
        policy, began = self._loaded(), time.thread_time()
        answer: Any
        if kind == wire.SHOULD_REPLAN:
            answer = policy.should_replan(self._obs, self._memo)
            if answer.__class__ is not bool:
                raise TypeError(f"should_replan returned {answer!r:.60}, not a bool")
        else:
            answer = _plain(policy.plan(self._obs, budget_s, self._memo))
        return self._reply(answer, time.thread_time() - began)

    def _reply(self, answer: Any, cpu_s: float) -> bytes:
        memo = dict(self._memo)
        news = None if memo == self._told else memo
        self._told = memo
        payload = json.dumps({"answer": answer, "memo": news, "cpu_s": cpu_s}).encode()
        return wire.REQUEST_HEAD.pack(len(payload) + 1, wire.OK) + payload

    def _take(self, memo: dict[str, float] | None) -> None:
        if memo is None:
            return
        self._memo = Memo()
        self._memo.update(memo)
        self._told = memo

    def _loaded(self) -> UntrustedPolicy:
        if self._policy is None:
            raise RuntimeError("no policy was loaded yet")
        return self._policy


def _view(values: tuple[Any, ...]) -> ReplicaView:
    role = _ROLES[values[_ROLE_AT]]
    return ReplicaView._make((*values[:_ROLE_AT], role, *values[_ROLE_AT + 1 :]))


def _plain(plan: Any) -> list[Any]:
    """A plan as JSON can carry it; the parent checks every field again."""
    if not isinstance(plan, Plan):
        raise TypeError(f"plan returned {type(plan).__name__}, not a Plan")
    return [
        [
            [r.model, list(r.devices), r.tp, r.pp, str(r.role), r.max_num_seqs, r.max_num_batched_tokens]
            for r in plan.replicas
        ],
        plan.reason,
    ]


_HANDLERS = {
    wire.LOAD: Decisions._load,
    wire.SYNC: Decisions._sync,
    wire.DISPATCH: Decisions._question,
    wire.ROUTE: Decisions._question,
    wire.PRIORITY: Decisions._priority,
    wire.PRIORITIES: Decisions._priorities,
}
