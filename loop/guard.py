"""The guard: whatever a policy answers, traffic gets a feasible decision, and the fault is counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loop.contracts import (
    REJECT,
    BatchedPolicy,
    Memo,
    Observation,
    Plan,
    Policy,
    PolicyFault,
    PolicyFaults,
    PolicyTimeout,
    RemotePolicy,
    ReplicaView,
    RequestView,
    Role,
)
from loop.contracts.live import CountedPolicy

LAST_PLACE = 1e18
"""The priority of a request that the policy refused but the guard admits."""

_EXAMPLES = 5


class NonsenseError(ValueError):
    """An answer of the right policy to the right question that no data plane can carry out."""


@dataclass(frozen=True, slots=True)
class GuardConfig:
    """Bounds that no policy, evolved or not, can move."""

    reject_share: float = 0.0
    """Share of the requests that a policy may refuse; beyond it a refused request goes to the end of the
    queue instead."""


class GuardedPolicy:
    """A policy with a fallback: errors, late answers and infeasible ones are replaced, and counted.

    Implements BatchedPolicy. The fallback is trusted code and keeps a memo of its own.
    """

    def __init__(self, policy: Policy, fallback: Policy, config: GuardConfig | None = None) -> None:
        self._policy = policy
        self._fallback = fallback
        self._fallback_memo = Memo()
        self._config = config or GuardConfig()
        self._errors = self._timeouts = self._infeasible = 0
        self._examples: list[str] = []
        self._seen = self._rejected = 0
        self._batched: BatchedPolicy | None = policy if isinstance(policy, BatchedPolicy) else None

    @property
    def name(self) -> str:
        """The guarded policy's."""
        return self._policy.name

    @property
    def digest(self) -> str:
        """The guarded policy's."""
        return self._policy.digest

    @property
    def solve_cpu_s(self) -> float:
        """CPU time that the policy's planning took in another process."""
        return self._policy.solve_cpu_s if isinstance(self._policy, RemotePolicy) else 0.0

    def sync(self, memo: Memo) -> None:
        """Bring the memo of a policy in another process up to date."""
        if isinstance(self._policy, RemotePolicy):
            try:
                self._policy.sync(memo)
            except PolicyFault as error:
                self._note("memo", error)

    def refused(self, text: str) -> None:
        """Count a plan that passed the guard and that the data plane refused all the same."""
        if isinstance(self._policy, GuardedPolicy):
            self._policy.refused(text)  # whose plan it was
            return
        self._infeasible += 1
        self._example(text)

    @property
    def faults(self) -> PolicyFaults:
        """Counted so far; those that the policy replaced within itself are among them."""
        own = PolicyFaults(self._errors, self._timeouts, self._infeasible, tuple(self._examples))
        if not isinstance(self._policy, CountedPolicy):
            return own
        inner = self._policy.faults
        return PolicyFaults(
            own.errors + inner.errors,
            own.timeouts + inner.timeouts,
            own.infeasible + inner.infeasible,
            (*own.examples, *inner.examples),
        )

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        """The policy's answer; the fallback's when there is none."""
        try:
            answer = self._policy.should_replan(obs, memo)
            if not isinstance(answer, bool):
                raise NonsenseError(f"should_replan returned {answer!r:.60}, not a bool")
        except Exception as error:  # noqa: BLE001 - a policy is foreign code: anything may come out of it
            self._note("should_replan", error)
            return self._fallback.should_replan(obs, self._fallback_memo)
        return answer

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        """A feasible plan: the policy's, else the fallback's, else the plan that stands."""
        try:
            plan = self._policy.plan(obs, budget_s, memo)
            problems = plan_problems(plan, obs)
        except Exception as error:  # noqa: BLE001
            self._note("plan", error)
        else:
            if not problems:
                return plan
            self._infeasible += 1
            self._example(f"tick {obs.tick}: plan: {problems[0]}")
        plan = self._fallback.plan(obs, budget_s, self._fallback_memo)
        return plan if not plan_problems(plan, obs) else obs.plan

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
        """A valid index into `replicas`."""
        try:
            index = self._policy.route(request, replicas, memo)
            if index.__class__ is int and 0 <= index < len(replicas):
                return index
            raise NonsenseError(f"route returned {index!r:.60} for {len(replicas)} replicas")
        except Exception as error:  # noqa: BLE001
            self._note("route", error)
            return self._fallback.route(request, replicas, self._fallback_memo)

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        """A finite priority, or REJECT within the share that may be refused."""
        try:
            value = self._policy.priority(request, replica, memo)
            if value.__class__ is float or value.__class__ is int:
                if math.isfinite(value):
                    return value
                if value == REJECT:
                    return self._admit()
            raise NonsenseError(f"priority returned {value!r:.60}")
        except Exception as error:  # noqa: BLE001
            self._note("priority", error)
            return self._fallback.priority(request, replica, self._fallback_memo)

    def dispatch(
        self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo
    ) -> tuple[int, float]:
        """Route and priority; one crossing where the policy lives in another process."""
        self._seen += 1
        if self._batched is None:
            index = self.route(request, replicas, memo)
            return index, self.priority(request, replicas[index], memo)
        try:
            index, value = self._batched.dispatch(request, replicas, memo)
            if not (index.__class__ is int and 0 <= index < len(replicas)):
                raise NonsenseError(f"route returned {index!r:.60} for {len(replicas)} replicas")
            if value == REJECT:
                return index, self._admit()
            if not math.isfinite(value):
                raise NonsenseError(f"priority returned {value!r:.60}")
        except Exception as error:  # noqa: BLE001
            self._note("dispatch", error)
            index = self._fallback.route(request, replicas, self._fallback_memo)
            return index, self._fallback.priority(request, replicas[index], self._fallback_memo)
        return index, value

    def _admit(self) -> float:
        if self._rejected + 1 <= self._config.reject_share * self._seen:
            self._rejected += 1
            return REJECT
        return LAST_PLACE

    def _note(self, where: str, error: Exception) -> None:
        if isinstance(error, PolicyTimeout):
            self._timeouts += 1
        elif isinstance(error, NonsenseError):
            self._infeasible += 1
        else:
            self._errors += 1
        self._example(f"{where}: {type(error).__name__}: {error}")

    def _example(self, text: str) -> None:
        if len(self._examples) < _EXAMPLES and text not in self._examples:
            self._examples.append(text)


def plan_problems(plan: Plan, obs: Observation) -> list[str]:
    """Why a plan cannot be carried out, each in one line that names the replica; empty: it can.

    A plan must use available devices once each, with a deployment option that fits, and keep at least one
    replica that can take requests for each model that an option exists for.
    """
    devices = {d.id: d for d in obs.devices}
    options = {(o.model, o.kind, o.tp, o.pp) for o in obs.options}
    problems: list[str] = []
    used: dict[str, int] = {}
    for i, r in enumerate(plan.replicas):
        who = f"replica {i} ({r.model} tp={r.tp} pp={r.pp})"
        missing = [d for d in r.devices if d not in devices]
        if missing:
            problems.append(f"{who}: unknown device {missing[0]!r}")
            continue
        gone = [d for d in r.devices if not devices[d].available]
        if gone:
            problems.append(f"{who}: device {gone[0]} is not available")
        for d in r.devices:
            if d in used:
                problems.append(f"{who}: device {d} is used by replica {used[d]} too")
            used[d] = i
        if len(r.devices) != r.tp * r.pp or not r.devices:
            problems.append(f"{who}: has {len(r.devices)} devices, needs tp * pp = {r.tp * r.pp}")
        elif unfit := [d for d in r.devices if (r.model, devices[d].kind, r.tp, r.pp) not in options]:
            problems.append(f"{who}: does not fit on {devices[unfit[0]].kind}")
        stages = [r.devices[s * r.tp : (s + 1) * r.tp] for s in range(r.pp)]
        if any(len({devices[d].node for d in stage}) > 1 for stage in stages):
            problems.append(f"{who}: tensor parallelism crosses nodes")
        if r.max_num_seqs < 1 or r.max_num_batched_tokens < 1:
            problems.append(f"{who}: batch limits must be positive")
    for model in sorted(servable_models(obs) - served_models(plan)):
        problems.append(f"no replica takes requests for {model}")
    return problems


def served_models(plan: Plan) -> set[str]:
    """Models for which a plan has a replica that takes requests."""
    return {r.model for r in plan.replicas if r.role is not Role.DECODE}


def servable_models(obs: Observation) -> set[str]:
    """Models for which some option still finds enough available devices of its kind, each stage in a node."""
    per_node: dict[tuple[str, str], int] = {}
    for d in obs.devices:
        if d.available:
            per_node[d.kind, d.node] = per_node.get((d.kind, d.node), 0) + 1
    stages = {
        (o.kind, o.tp): sum(n // o.tp for (kind, _), n in per_node.items() if kind == o.kind)
        for o in obs.options
    }
    return {o.model for o in obs.options if stages[o.kind, o.tp] >= o.pp}
