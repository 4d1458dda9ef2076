"""A candidate policy behind a process boundary, as any other Policy."""

from __future__ import annotations

import marshal
import math
import pickle
import time
from collections.abc import Sequence
from itertools import compress
from operator import is_not
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
    ReplicaSpec,
    ReplicaView,
    RequestView,
    Role,
)
from strategy.evolve.sandbox.affinity import SharedCpu
from strategy.evolve.sandbox.limits import SandboxLimits
from strategy.evolve.sandbox.process import (
    PolicyRaisedError,
    WorkerProcess,
    WorkerSupply,
    parse,
)
from strategy.evolve.worker import wire

__all__ = ["PolicyRaisedError", "SandboxedPolicy"]

_log = structlog.get_logger(__name__)
_ROLE_AT = ReplicaView._fields.index("role")
_MARSHAL_VERSION = 2  # plain values need no back references, and are written faster without
_MAX_REPLICAS, _MAX_DEVICES, _MAX_TEXT, _MAX_INT = 4096, 1024, 256, 2**31


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
        self._dead = ""
        self._route_ms = math.ceil(self.limits.route_s * 1000)
        self._memo: Memo | None = None
        self._mirror: dict[str, float] = {}
        self._obs: Observation | None = None
        self._sent: dict[str, list[ReplicaView]] = {}
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
        return _plan(self._at_monitoring_point(wire.PLAN, obs, budget_s, memo, timeout_s))

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
        """Index into `replicas`. `dispatch` asks for the priority in the same crossing."""
        return self._cross(wire.ROUTE, request, replicas, memo)[0]

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        """Order in the replica's queue."""
        body = marshal.dumps((self._news(memo), tuple(request), _view(replica)), _MARSHAL_VERSION)
        return self._exchange(wire.PRIORITY, body, 1)[1]

    def dispatch(
        self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo
    ) -> tuple[int, float]:
        """(index, priority), in one crossing that carries only the views that changed since the last one."""
        return self._cross(wire.DISPATCH, request, replicas, memo)

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
            if self._shared is not None:
                self._shared.close()
        if self._own_supply:
            self._supply.close()

    def __enter__(self) -> SandboxedPolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cross(
        self, kind: int, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo
    ) -> tuple[int, float]:
        last = self._sent.get(request.model)
        changed: tuple[int, ...] | None
        if last is None or len(last) != len(replicas):
            changed, views = None, [_view(r) for r in replicas]
        else:
            changed = tuple(compress(range(len(last)), map(is_not, replicas, last)))
            views = [_view(replicas[i]) for i in changed]
        news = None if memo is self._memo else self._news(memo)
        body = marshal.dumps((news, tuple(request), changed, views), _MARSHAL_VERSION)
        if views:
            self._sent[request.model] = list(replicas)
        return self._exchange(kind, body, len(replicas))

    def _exchange(self, kind: int, body: bytes, count: int) -> tuple[int, float]:
        """Ask for an index below `count` and a priority."""
        try:
            frame = self._fast(kind, body)
        except BaseException as fault:  # noqa: BLE001 - raised again
            raise self._after(fault) from fault.__cause__
        length, status, index, priority = wire.DISPATCHED.unpack(frame)
        if length != wire.DISPATCHED.size - wire.HEADER.size or status != wire.OK:
            raise self._replace(PolicyCrashed("the worker broke the protocol: an answer of the wrong shape"))
        if not 0 <= index < count:
            raise PolicyError(f"route answered {index} for {count} replicas")
        if priority != priority or priority == -math.inf:  # noqa: PLR0124  NaN
            raise PolicyError(f"priority answered {priority}")
        return index, priority

    def _fast(self, kind: int, body: bytes) -> bytes:
        """The hot path of `WorkerProcess.ask`: as a rule one write, one poll and one read."""
        worker = self._worker
        if worker is None:
            raise self._gone()
        deadline = time.monotonic() + self.limits.route_s
        worker.send(kind, body, deadline)
        frame = worker.read_now(self._route_ms)
        if len(frame) == wire.DISPATCHED.size and frame[wire.HEADER.size] == wire.OK:
            return frame
        worker.receive(deadline, begun=frame)  # an exception, or an answer in pieces
        raise PolicyCrashed("the worker broke the protocol: an answer in pieces")

    def _at_monitoring_point(
        self, kind: int, obs: Observation, budget_s: float, memo: Memo, timeout_s: float
    ) -> Any:
        if self._shared is not None:
            self._shared.settle()
        # a memo or an observation that was sent before is not sent again
        changed = memo is not self._memo or dict(memo) != self._mirror
        observed = None if obs is self._obs else pickle.dumps(obs, protocol=5)
        body = marshal.dumps((dict(memo) if changed else None, observed, budget_s), _MARSHAL_VERSION)
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
                fresh[key] = value
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
            body = marshal.dumps((self.name, self._source), _MARSHAL_VERSION)
            worker.ask(wire.LOAD, body, self.limits.load_s)
        except BaseException:
            worker.kill()
            raise
        self._shared = SharedCpu(worker.pid) if self.limits.share_cpu else None
        self._worker, self.layers = worker, worker.layers

    def _forget(self) -> None:
        """A fresh worker has seen nothing."""
        self._memo, self._mirror, self._obs = None, {}, None
        self._sent = {}


def _view(replica: ReplicaView) -> tuple[Any, ...]:
    """A view as marshal can carry it."""
    return (*replica[:_ROLE_AT], replica.role.value, *replica[_ROLE_AT + 1 :])


def _plan(answer: Any) -> Plan:
    """A plan of exactly the right types.

    Raises:
        PolicyError: names the replica and the field.
    """
    if not isinstance(answer, list) or len(answer) != 2 or not isinstance(answer[0], list):
        raise PolicyError("plan: the answer is no plan")
    replicas, reason = answer
    if len(replicas) > _MAX_REPLICAS:
        raise PolicyError(f"plan: {len(replicas)} replicas, at most {_MAX_REPLICAS}")
    return Plan(tuple(_spec(i, r) for i, r in enumerate(replicas)), reason[:2000] if _is(reason, str) else "")


def _spec(index: int, fields: Any) -> ReplicaSpec:
    if not isinstance(fields, list) or len(fields) != 7:
        raise PolicyError(f"plan: replica {index} is no ReplicaSpec")
    model, devices, tp, pp, role, seqs, tokens = fields
    if not _is_text(model):
        raise PolicyError(f"plan: replica {index}: model is {model!r:.60}")
    if not isinstance(devices, list) or len(devices) > _MAX_DEVICES or not all(map(_is_text, devices)):
        raise PolicyError(f"plan: replica {index}: devices are {devices!r:.60}")
    named = {"tp": tp, "pp": pp, "max_num_seqs": seqs, "max_num_batched_tokens": tokens}
    for name, value in named.items():
        if not _is(value, int) or not 0 < value < _MAX_INT:
            raise PolicyError(f"plan: replica {index}: {name} is {value!r:.60}, not a positive int")
    try:
        return ReplicaSpec(model, tuple(devices), tp, pp, Role(role), seqs, tokens)
    except ValueError as error:
        raise PolicyError(f"plan: replica {index}: role is {role!r:.60}") from error


def _is_text(value: Any) -> bool:
    return _is(value, str) and len(value) <= _MAX_TEXT


def _is(value: Any, kind: type) -> bool:
    return value.__class__ is kind
