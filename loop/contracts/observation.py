"""What a policy may see. Never the future: no output length before the request has finished."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from loop.contracts.plan import Plan, Role
from loop.contracts.workload import ReplayMode


class RequestView(NamedTuple):
    """A request as a router or queue sees it. (NamedTuples: the hot path makes millions of them.)"""

    id: int
    model: str
    arrival_s: float
    now_s: float
    """When the question is asked; `now_s - arrival_s` is how long it has waited."""
    input_tokens: int
    predicted_output_tokens: float
    """Running mean of the finished requests of this model and input-length class."""
    tier: int
    retries: int
    """How often it lost its replica."""
    cached_tokens: tuple[int, ...] = ()
    """Prompt tokens already in the prefix cache of each replica, aligned with the `replicas` argument;
    empty: none anywhere, or prefixes unknown."""


class ReplicaView(NamedTuple):
    """A live replica as the router knows it: its own counts, and the estimates of the performance model."""

    id: int
    """Stable for the life of the replica; not its position in the sequence."""
    model: str
    role: Role
    kind: str
    """Device kind, e.g. `h100-sxm`; the slowest one of a mixed group."""
    node: str
    tp: int
    pp: int
    ready_in_s: float
    """0 when serving; else the estimated time until it is (weights loading): it may be routed to already."""
    running: int
    waiting: int
    waiting_tokens: int
    """Prompt tokens still to prefill, of waiting and running requests."""
    kv_tokens: int
    """Tokens that hold KV cache now."""
    kv_capacity_tokens: int
    outstanding_tokens: float
    """Predicted output tokens still to decode, of waiting and running requests."""
    max_num_seqs: int
    max_num_batched_tokens: int
    prefill_tokens_per_s: float
    """Estimate at full batch, at the speed observed now."""
    decode_step_s: float
    """Estimate of one decode iteration at the batch it has now."""
    decode_tokens_per_s: float
    """Estimate at a well-filled batch (bounded by `max_num_seqs` and KV capacity)."""
    speed: float
    """Observed speed against nominal: below 1 when throttled or straggling."""


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device as telemetry shows it."""

    id: str
    kind: str
    node: str
    available: bool
    speed: float
    """Observed speed against nominal."""
    leaving_in_s: float | None
    """Seconds until an announced spot reclaim; None: none announced."""
    memory_bytes: int
    usd_per_hour: float
    spot: bool


@dataclass(frozen=True, slots=True)
class DeploymentOption:
    """What one replica of `model` on `tp * pp` devices of `kind` is estimated to do (nominal hardware)."""

    model: str
    kind: str
    tp: int
    pp: int
    kv_capacity_tokens: int
    start_s: float
    """From the order to the first request served: weights load, warm-up."""
    prefill_tokens_per_s: float
    decode_base_s: float
    """One decode iteration costs `decode_base_s + n * decode_per_seq_s + kv * decode_per_kv_token_s`."""
    decode_per_seq_s: float
    decode_per_kv_token_s: float
    tp_link_bytes_per_s: float
    """Bandwidth between the devices of one stage."""
    watts: float
    usd_per_hour: float


@dataclass(frozen=True, slots=True)
class Slo:
    """Service-level objective of one request. A request is good when it meets both."""

    ttft_s: float = 10.0
    tpot_s: float = 0.2


@dataclass(frozen=True, slots=True)
class Demand:
    """What one model was asked for in one window, and what became of it. Means of nothing are 0."""

    model: str
    arrived: int
    finished: int
    rejected: int
    rate_per_s: float
    input_tokens_mean: float
    input_tokens_p90: float
    output_tokens_mean: float
    output_tokens_p90: float
    waiting: int
    """Backlog at the monitoring point: accepted, not yet running."""
    waiting_input_tokens: int
    running: int
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    goodput: float
    """Share of the finished requests that met the SLO (1.0 when none finished)."""
    prefix_hit: float
    """Share of prompt tokens served from the prefix cache."""
    output_tokens_max: float = 0.0
    """The longest answer."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that `should_replan` and `plan` see at a monitoring point."""

    tick: int
    now_s: float
    window_s: float
    """Length of the windows in trace time."""
    mode: ReplayMode
    devices: tuple[DeviceView, ...]
    options: tuple[DeploymentOption, ...]
    plan: Plan
    """The plan that serves now, without the replicas that died."""
    replicas: tuple[ReplicaView, ...]
    demand: tuple[Demand, ...]
    """One per model: the window that just ended, and the backlog now (in batch replay: what was released)."""
    history: tuple[tuple[Demand, ...], ...]
    """Earlier windows, oldest first, at most 8."""
    slo: Slo
    pain: float
    """0 (none) to 1: the worst of `signals` below zero, as a positive number."""
    pleasure: float
    """0 to 1."""
    signals: tuple[tuple[str, float], ...]
    """Named, signed, each in [-1, 1]: negative hurts."""
    changes: tuple[str, ...]
    """What changed since the last monitoring point, e.g. `down:n03`; empty: nothing did."""
    last_serving_s: float
    """How long serving the last window took."""
    last_reconfiguration_s: float
    """Stall of the last reconfiguration; 0 when there was none yet."""
    ticks_since_replan: int
