"""What happened: per request, per window, per run."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from loop.contracts.plan import Plan


class Finish(StrEnum):
    """How a request ended."""

    OK = "ok"
    REJECTED = "rejected"  # by the policy's admission
    INFEASIBLE = "infeasible"  # longer than any replica of its model can hold
    LOST = "lost"  # the run ended before it could be served
    CANCELLED = "cancelled"  # its client went away (live only): nobody's failing


class RequestRecord(NamedTuple):
    """The life of one request, in seconds of virtual time; -1.0 where it never came so far."""

    id: int
    model: str
    finish: Finish
    arrival_s: float
    queued_s: float
    """Entered the queue of the replica that served it."""
    scheduled_s: float
    """First iteration that held some of it."""
    first_token_s: float
    last_token_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    replica: int
    preemptions: int
    retries: int


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Mean and quantiles of one metric, in seconds; zeros when there is nothing to tell."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True, slots=True)
class ServingStats:
    """Requests of one window or of one run, summed up."""

    finished: int
    rejected: int
    lost: int
    input_tokens: int
    output_tokens: int
    ttft_s: Quantiles
    tpot_s: Quantiles
    e2e_s: Quantiles
    good: int
    """Finished requests that met the SLO."""
    preemptions: int
    retries: int
    cached_tokens: int

    @property
    def goodput(self) -> float:
        """Share of all requests (lost and rejected ones included) that met the SLO; 1.0 of none."""
        total = self.finished + self.rejected + self.lost
        return self.good / total if total else 1.0


@dataclass(frozen=True, slots=True)
class Resources:
    """What was spent."""

    device_s: float = 0.0
    """Device-seconds held by replicas: starting, serving and draining."""
    joules: float = 0.0
    usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Reconfiguration:
    """What carrying out a plan does: counts and the expected cost."""

    started: int
    stopped: int
    kept: int
    resized: int
    """Kept with other batch limits."""
    expected_s: float
    """Until the last new replica serves, by the data plane's own estimate."""


@dataclass(frozen=True, slots=True)
class PolicyFaults:
    """Answers of a policy that were late, wrong or absent, each replaced by the fallback's."""

    errors: int = 0
    timeouts: int = 0
    infeasible: int = 0
    examples: tuple[str, ...] = ()
    """The first few, in words."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.errors + self.timeouts + self.infeasible


@dataclass(frozen=True, slots=True)
class WindowResult:
    """One window of a run. `total_s = serving_s + solve_s + reconfiguration_s`."""

    index: int
    total_s: float
    serving_s: float
    solve_s: float
    """Time that `plan` took and that nothing served meanwhile."""
    reconfiguration_s: float
    """Stall: time with work pending, weighted by the share of the plan's devices that were not serving
    because they drained, loaded or warmed up."""
    solve_charged_s: float
    """Time that `plan` took, hidden or not."""
    replanned: bool
    policy: str
    """Digest of the policy that decided."""
    plan: Plan
    stats: ServingStats
    resources: Resources
    faults: PolicyFaults = field(default_factory=PolicyFaults)


@dataclass(frozen=True, slots=True)
class RunResult:
    """A whole replay."""

    policy: str
    windows: tuple[WindowResult, ...]
    stats: ServingStats
    resources: Resources
    faults: PolicyFaults

    @property
    def serving_s(self) -> float:
        """Sum over windows."""
        return sum(w.serving_s for w in self.windows)

    @property
    def solve_s(self) -> float:
        """Sum over windows."""
        return sum(w.solve_s for w in self.windows)

    @property
    def reconfiguration_s(self) -> float:
        """Sum over windows."""
        return sum(w.reconfiguration_s for w in self.windows)

    @property
    def total_execution_time_s(self) -> float:
        """The headline metric (DESIGN section 6)."""
        return sum(w.total_s for w in self.windows)
