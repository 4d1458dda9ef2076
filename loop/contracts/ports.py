"""The ports between layers. Whoever implements one is found by loop.compose, never by another layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from loop.contracts.evolution import Evaluation, EvaluationTask, PolicySource, Score, SynthesisCost
from loop.contracts.observation import DeviceView, Observation, ReplicaView, RequestView
from loop.contracts.plan import Plan
from loop.contracts.results import Reconfiguration, RequestRecord, Resources
from loop.contracts.workload import ClusterEvent, Request

REJECT: float = float("inf")
"""Returned by `priority`: the request is not admitted. (Lower priorities run first.)"""


class Memo(dict[str, float]):
    """A policy's only state: a bounded dict of floats, journaled, so that a replay is exact.

    Raises:
        ValueError: on the 257th key, a key that is no short string, or a value that is no finite number.
    """

    LIMIT = 256

    def __setitem__(self, key: str, value: float) -> None:
        if not isinstance(key, str) or len(key) > 80:
            raise ValueError(f"memo key must be a string of at most 80 characters, not {key!r:.100}")
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"memo[{key!r}] must be finite, not {number}")
        if key not in self and len(self) >= self.LIMIT:
            raise ValueError(f"memo is full: {self.LIMIT} keys")
        super().__setitem__(key, number)


@runtime_checkable
class Policy(Protocol):
    """The four decisions of a serving policy (DESIGN section 4). All must be deterministic."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def digest(self) -> str:
        """Identity of the source."""

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        """Is it worth the disturbance now?"""

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        """Which replicas shall exist."""

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
        """Index into `replicas` (all of the request's model, none empty of role for it)."""

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        """Order in the replica's queue, lower first; REJECT refuses admission."""


@runtime_checkable
class BatchedPolicy(Policy, Protocol):
    """A policy behind a process boundary: route and priority of one request in one crossing."""

    def dispatch(
        self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo
    ) -> tuple[int, float]:
        """(index of the replica, priority in its queue)."""


@runtime_checkable
class RemotePolicy(Policy, Protocol):
    """A policy that runs in another process, and says what its planning cost there."""

    @property
    def solve_cpu_s(self) -> float:
        """CPU seconds spent in `should_replan` and `plan` since the start."""

    def sync(self, memo: Memo) -> None:
        """Bring into the memo what `route` and `priority` wrote into it over there. May raise PolicyFault."""


RecordSink = Callable[[RequestRecord], None]


@dataclass(frozen=True, slots=True)
class Backlog:
    """Requests of one model that are accepted and not finished."""

    model: str
    waiting: int
    waiting_input_tokens: int
    running: int


@dataclass(frozen=True, slots=True)
class PlaneSnapshot:
    """The state of a data plane at a monitoring point; counters run from the start."""

    now_s: float
    plan: Plan
    """Replicas alive or starting; those draining away and the dead are not in it."""
    devices: tuple[DeviceView, ...]
    replicas: tuple[ReplicaView, ...]
    backlog: tuple[Backlog, ...]
    resources: Resources
    reconfiguration_stall_s: float
    """Integral over the time with work pending of the share of planned devices that did not serve because
    they drained, loaded or warmed up."""
    idle_pending_s: float
    """Time with work pending while no replica served at all and none was being reconfigured."""


class DataPlane(Protocol):
    """What the controller drives: the twin, or real engines. Times are seconds on the plane's own clock."""

    @property
    def now_s(self) -> float:
        """The clock."""

    def use(self, policy: Policy, memo: Memo) -> None:
        """Route and order by this policy from now on (a swap: in-flight requests are not moved)."""

    def submit(self, requests: Iterable[Request]) -> None:
        """Add requests, ascending in `arrival_s`, none earlier than those submitted before. An arrival time
        that has passed counts from that arrival and is routed now."""

    def inject(self, event: ClusterEvent) -> None:
        """Let this happen to the hardware at `max(event.at_s, now_s)`."""

    def apply(self, plan: Plan) -> Reconfiguration:
        """Begin to carry out a plan, now. Raises PlanError, having changed nothing, when it cannot be."""

    def run_until(self, t_s: float) -> None:
        """Advance the clock to t_s."""

    def run_until_idle(self, limit_s: float) -> bool:
        """Advance until nothing is pending; False: stopped at `limit_s`, or stuck with work that no replica
        can serve."""

    def snapshot(self) -> PlaneSnapshot:
        """The state now."""

    def close(self) -> None:
        """Give up on everything unfinished: each such request becomes a LOST record. More may be submitted."""


class PolicyFault(RuntimeError):
    """A policy gave no usable answer; whoever catches it asks the fallback."""


class PolicyTimeout(PolicyFault):
    """The answer did not come within its deadline."""


class PolicyCrashed(PolicyFault):
    """The process that ran the policy is gone."""


class PolicyError(PolicyFault):
    """The policy raised, or its answer has the wrong type or value."""


class PlanError(ValueError):
    """A plan that cannot be carried out; the message names the replica and the reason."""


class Evaluator(Protocol):
    """Scores policies on past windows in simulated worlds, each in a sandbox."""

    def evaluate(
        self, jobs: Sequence[tuple[PolicySource, EvaluationTask]]
    ) -> Iterator[tuple[int, Evaluation]]:
        """Yield (index of the job, evaluation) as they are done, in any order, one for each job."""


@dataclass(frozen=True, slots=True)
class Parent:
    """A policy to build on, with what is known of it."""

    policy: PolicySource
    objective: float
    """Lower is better; comparable within one generation."""
    score: Score | None = None
    """Of the full stage; None: not known."""
    window_ratios: tuple[float, ...] = ()
    """Objective of each window of the full stage against the incumbent's; empty: not known."""


class Synthesiser(Protocol):
    """Writes candidates. The built-in one, and an LLM, stand behind this same port."""

    @property
    def pending(self) -> int:
        """Candidates under way: while there are some, an empty answer of `ask` does not mean "no more ideas"."""

    @property
    def cost(self) -> SynthesisCost:
        """What asking has cost so far."""

    def ask(self, parents: Sequence[Parent], obs: Observation | None, count: int) -> list[PolicySource]:
        """At most `count` new candidates, those that are ready now; fewer, even none, when nothing is."""

    def tell(self, candidate: PolicySource, evaluation: Evaluation, parent_objective: float | None) -> None:
        """What became of a candidate; failures included."""

    def close(self) -> None:
        """Give up on what is under way; idempotent."""
