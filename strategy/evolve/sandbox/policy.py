"""A candidate policy behind a process boundary, as any other Policy."""

from __future__ import annotations

import marshal
import math
import pickle
import time
from collections.abc import Sequence
from typing import Any

import structlog

from loop.contracts import (
    Memo,
    Observation,
    Plan,
    PolicyCrashed,
    PolicyError,
    PolicyFault,
    PolicySource,
    PolicyTimeout,
    ReplicaView,
    RequestView,
)
from strategy.evolve.sandbox.affinity import SharedCpu
from strategy.evolve.sandbox.answers import plan_of
from strategy.evolve.sandbox.frames import PolicyRaisedError, clean, parse
from strategy.evolve.sandbox.limits import SandboxLimits
from strategy.evolve.sandbox.process import WorkerProcess, WorkerSupply
from strategy.evolve.sandbox.seating import Seating
from strategy.evolve.worker import quick, wire

__all__ = ["PolicyRaisedError", "SandboxedPolicy"]

_log = structlog.get_logger(__name__)
_ROLE_AT = ReplicaView._fields.index("role")
_REPLY_BYTES = wire.DISPATCHED.size - wire.HEADER.size
_MAX_NUMBER = (1 << 32) - 1
_MAX_SLOTS = 1 << 16
_clock, _unpack = time.perf_counter, wire.DISPATCHED.unpack
_IN_FULL = {wire.QUICK_DISPATCH: wire.DISPATCH, wire.QUICK_ROUTE: wire.ROUTE}


class SandboxedPolicy:
    """A policy in a locked worker process. Implements BatchedPolicy and RemotePolicy.

    The worker keeps the memo; what `should_replan` and `plan` left in it, and what `route` and `priority`
    changed meanwhile, is brought into the caller's memo at each of these two calls, and by `sync`. A worker that misses a
    deadline or dies is replaced, and starts over from the caller's memo.

    Every decision may raise PolicyTimeout, PolicyCrashed, or PolicyError (PolicyRaisedError with the line
    where the policy's own code raised); so does the constructor, which loads the source. `supply` hands out
    the workers and keeps the spare; without one, the policy keeps its own.
    """

    def __init__(
        self,
        policy: PolicySource,
        limits: SandboxLimits | None = None,
        *,
        supply: WorkerSupply | None = None,
    ) -> None:
        self.name = policy.name
        self.digest = policy.digest
        self.limits = limits or (supply.limits if supply else SandboxLimits())
        self.kills = 0
        """Workers that had to be replaced."""
        self.solve_cpu_s = 0.0
        """CPU seconds that the worker spent in `should_replan` and `plan`; where no answer came, the wall
        seconds that were waited for it."""
        self.layers: tuple[str, ...] = ()
        """What holds the worker: rlimits, no_new_privs, landlock, seccomp, ... as far as the kernel has them."""
        self._source = policy.source
        self._own_supply = supply is None
        self._supply = supply or WorkerSupply(self.limits)
        self._worker: WorkerProcess | None = None
        self._shared: SharedCpu | None = None
        self._seating: Seating | None = None
        self._dead = ""
        self._route_ms = math.ceil(self.limits.route_s * 1000)
        self._memo: Memo | None = None
        self._mirror: dict[str, float] = {}
        self._obs: Observation | None = None
        self._slots: dict[str, quick.Slot] = {}
        self._number = 0
        try:
            self._employ()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the worker that answers now; 0 when there is none."""
        return self._worker.pid if self._worker else 0

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        """The policy's answer."""
        answer = self._at_monitoring_point(wire.SHOULD_REPLAN, obs, 0.0, memo, self.limits.should_replan_s)
        if answer.__class__ is not bool:
            raise PolicyError(f"should_replan answered {answer!r:.60}, not a bool")
        return bool(answer)

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        """The policy's plan, of the right types; whether it is feasible is for the guard to say."""
        timeout_s = budget_s + self.limits.plan_grace_s
        return plan_of(self._at_monitoring_point(wire.PLAN, obs, budget_s, memo, timeout_s))

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
        """Index into `replicas`. `dispatch` asks for the priority in the same crossing."""
        return self._cross(wire.QUICK_ROUTE, request, replicas, memo)[0]

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        """Order in the replica's queue."""
        return self._cross(wire.PRIORITY, request, (replica,), memo)[1]

    def priorities(self, requests: Sequence[RequestView], replica: ReplicaView, memo: Memo) -> list[float]:
        """Order of each in the replica's queue, all in one crossing within `route_s`; NaN where the policy raised."""
        changed = memo is not self._memo or dict(memo) != self._mirror
        question = (dict(memo) if changed else None, _view(replica), list(map(tuple, requests)))
        self._memo = memo
        report = self._report(
            wire.PRIORITIES, marshal.dumps(question, wire.MARSHAL_VERSION), self.limits.route_s
        )
        self._learn(report.get("memo"), memo)
        answers = report.get("answer")
        if (
            not isinstance(answers, list)
            or len(answers) != len(requests)
            or any(answer.__class__ is not float for answer in answers)
        ):
            raise PolicyError(f"priority: {len(requests)} numbers are expected, not {answers!r:.60}")
        return answers

    def dispatch(
        self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo
    ) -> tuple[int, float]:
        """(index, priority), in one crossing that carries only the views that changed since the last one."""
        return self._cross(wire.QUICK_DISPATCH, request, replicas, memo)

    def sync(self, memo: Memo) -> None:
        """Bring into the memo what `route` and `priority` wrote since the last monitoring point. Nothing is
        done when the worker is gone, works on another memo, or the caller changed this one: its word counts."""
        if self._worker is not None and memo is self._memo and dict(memo) == self._mirror:
            self._learn(self._report(wire.SYNC, b"", self.limits.should_replan_s).get("memo"), memo)

    def close(self) -> None:
        """End the worker; the policy answers no more."""
        self._dead = self._dead or "it was closed"
        if self._worker is not None:
            self._worker.kill()
            self._worker = None
        self._leave_cpu()
        if self._own_supply:
            self._supply.close()

    def __enter__(self) -> SandboxedPolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cross(
        self, kind: int, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo
    ) -> tuple[int, float]:
        """Ask for an index into `replicas` and a priority. (Long, since a call here costs what a step of the
        question's encoding does.)"""
        worker, seating = self._worker, self._seating
        if worker is None:
            raise self._gone()
        bits, look_s = 0, 0.0
        if seating is not None:
            if seating.skip:
                seating.skip -= 1
            else:
                bits, look_s = seating.begin(), seating.look_s
        # the answer must bear the question's number: what a worker says unasked is noticed
        self._number = number = self._number + 1 & _MAX_NUMBER
        frame = None
        if memo is self._memo and kind != wire.PRIORITY:
            slot = self._slots.get(request.model)
            if slot is not None:
                frame = quick.question(kind | bits, number, slot, request, replicas)
        if frame is None:
            frame = self._in_full(kind, bits, request, replicas, memo)
        try:
            reply = worker.exchange(frame, self._route_ms, look_s)
        except BaseException as fault:  # noqa: BLE001 - raised again
            raise self._after(fault) from fault.__cause__
        if look_s and seating is not None:
            seating.ended = _clock()
        length, status, answered, index, priority = _unpack(reply)
        if length != _REPLY_BYTES or status != wire.OK or answered != number:
            raise self._replace(PolicyCrashed("the worker broke the protocol: an answer to no question"))
        if not 0 <= index < len(replicas):
            raise PolicyError(f"route answered {index} for {len(replicas)} replicas")
        if priority != priority or priority == -math.inf:  # noqa: PLR0124  NaN
            raise PolicyError(f"priority answered {priority}")
        return index, priority

    def _in_full(
        self, kind: int, bits: int, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo
    ) -> bytes:
        """A question that brings all replicas, and maybe the memo."""
        question: tuple[Any, ...] = (self._number, self._news(memo), tuple(request))
        if kind == wire.PRIORITY:
            return _frame(kind | bits, (*question, _view(replicas[0])))
        slot = self._slots.get(request.model)
        if slot is None and len(self._slots) >= _MAX_SLOTS:
            self._slots.clear()
        slot = quick.Slot(slot.number if slot else len(self._slots), request.model, replicas)
        frame = _frame(_IN_FULL[kind] | bits, (*question, slot.number, list(map(_view, replicas))))
        self._slots[request.model] = slot
        return frame

    def _at_monitoring_point(
        self, kind: int, obs: Observation, budget_s: float, memo: Memo, timeout_s: float
    ) -> Any:
        if self._shared is not None:
            self._shared.settle()
        elif self._seating is not None:
            self._seating.release()  # planning takes time that other threads here may have a use for
        # a memo or an observation that was sent before is not sent again
        changed = memo is not self._memo or dict(memo) != self._mirror
        observed = None if obs is self._obs else pickle.dumps(obs, protocol=5)
        body = marshal.dumps((dict(memo) if changed else None, observed, budget_s), wire.MARSHAL_VERSION)
        self._memo, self._obs = memo, obs
        report = self._report(kind, body, timeout_s)
        self._learn(report.get("memo"), memo)
        spent = report.get("cpu_s")
        if spent.__class__ is float and 0.0 <= spent < timeout_s * 2:
            self.solve_cpu_s += spent
        return report.get("answer")

    def _report(self, kind: int, body: bytes, timeout_s: float) -> dict[str, Any]:
        """Ask for an answer in JSON. The wait for one that does not come is charged."""
        began = time.monotonic()
        try:
            if self._worker is None:
                raise self._gone()
            report = parse(self._worker.ask(kind, body, timeout_s))
        except BaseException as fault:  # noqa: BLE001 - raised again
            if isinstance(fault, PolicyTimeout | PolicyCrashed):
                self.solve_cpu_s += min(time.monotonic() - began, timeout_s)
            raise self._after(fault) from fault.__cause__
        if not isinstance(report, dict):
            raise PolicyError(f"the answer cannot be read: {report!r:.60}")
        return report

    def _news(self, memo: Memo) -> dict[str, float] | None:
        """The memo, if the worker does not have it."""
        if memo is self._memo:
            return None
        self._memo, self._mirror = memo, dict(memo)
        return self._mirror

    def _learn(self, told: Any, memo: Memo) -> None:
        """Bring the caller's memo in step with the worker's."""
        if told is None:
            self._mirror = dict(memo)
            return
        self._memo = None  # until it is known to be in step
        fresh = Memo()
        try:
            for key, value in told.items():
                fresh[clean(key)] = value
        except (ValueError, TypeError, AttributeError) as error:
            raise PolicyError(f"the memo cannot be taken over: {error!s:.200}") from error
        memo.clear()
        memo.update(fresh)
        self._memo, self._mirror = memo, dict(memo)

    def _after(self, fault: BaseException) -> BaseException:
        """See to the worker after an exchange that failed, and say what to raise."""
        if self._worker is None or (isinstance(fault, Exception) and not isinstance(fault, PolicyFault)):
            return fault
        if isinstance(fault, PolicyTimeout | PolicyCrashed):
            return self._replace(fault)
        if not isinstance(fault, PolicyError):
            # interrupted in the middle of an exchange: what the pipe holds belongs to no question
            self._worker.kill()
            self._leave_cpu()
            self._employ()
        return fault

    def _gone(self) -> PolicyCrashed:
        return PolicyCrashed(f"policy {self.name}: {self._dead}")

    def _replace(self, fault: PolicyTimeout | PolicyCrashed) -> PolicyTimeout | PolicyCrashed:
        """Kill the worker and put the spare in its place, unless that happened too often."""
        self.kills += 1
        _log.warning("sandbox worker replaced", policy=self.digest, kills=self.kills, reason=str(fault))
        if self._worker is not None:
            self._worker.kill()
            self._worker = None
        self._leave_cpu()
        if self.kills >= self.limits.max_kills:
            self._dead = f"given up after {self.kills} kills, the last because of: {fault}"
            return fault
        try:
            self._employ()
        except (PolicyTimeout, PolicyCrashed, PolicyError) as error:
            self._dead = f"cannot be loaded again: {error}"
        return fault

    def _employ(self) -> None:
        """Load the policy into a fresh worker."""
        worker = self._supply.take()
        self._forget()
        try:
            worker.ask(wire.LOAD, self._module(), self.limits.load_s)
        except BaseException as fault:
            worker.kill()
            if not (isinstance(fault, PolicyCrashed) and worker.orphaned):
                raise
            worker = self._supply.take()  # its template had died under it: no fault of the policy
            worker.ask(wire.LOAD, self._module(), self.limits.load_s)
        if self.limits.share_cpu:
            self._shared = SharedCpu(worker.pid)
        elif self.limits.follow_cpu:
            self._seating = Seating(worker.pid, side_by_side=self.limits.side_by_side)
        self._worker, self.layers = worker, worker.layers

    def _leave_cpu(self) -> None:
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def _module(self) -> bytes:
        return marshal.dumps((self.name, self._source), wire.MARSHAL_VERSION)

    def _forget(self) -> None:
        """A fresh worker has seen nothing."""
        self._memo, self._mirror, self._obs = None, {}, None
        self._slots = {}


def _view(replica: ReplicaView) -> tuple[Any, ...]:
    """A view as marshal can carry it."""
    return (*replica[:_ROLE_AT], replica.role.value, *replica[_ROLE_AT + 1 :])


def _frame(kind: int, question: tuple[Any, ...]) -> bytes:
    body = marshal.dumps(question, wire.MARSHAL_VERSION)
    return wire.REQUEST_HEAD.pack(len(body) + 1, kind) + body
