"""All that a policy may see and use: the one project module that living policies import.

A policy is a module of four plain functions (see docs/policies.md):

    should_replan(obs: Observation, memo: Memo) -> bool
    plan(obs: Observation, budget_s: float, memo: Memo) -> Plan
    route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int
    priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float

It may also import math, statistics, heapq, itertools, collections, bisect, and random with a fixed seed.
Everything here is pure: nothing reads a clock or a file, nothing changes its arguments.
"""

from collections.abc import Sequence

from loop.contracts.observation import (
    Demand,
    DeploymentOption,
    DeviceView,
    Observation,
    ReplicaView,
    RequestView,
    Slo,
)
from loop.contracts.plan import EMPTY_PLAN, Plan, ReplicaKey, ReplicaSpec, Role
from loop.contracts.ports import REJECT, Memo
from loop.contracts.workload import ReplayMode
from strategy.estimates import (
    Load,
    added_and_removed,
    batch_size,
    loads,
    longest_output_tokens,
    option_for,
    options_of,
    plan_serving_s,
    rates,
    reconfiguration_s,
    requests_per_s,
    seconds_per_request,
    serving_time_s,
    shared_batch,
)
from strategy.forecast import expected_loads, holt, past_values
from strategy.makespan import plan_makespan_s
from strategy.placing import (
    best_options,
    differs,
    fill,
    groups,
    keep,
    shrink,
    slow_devices,
    spec_of,
    usable_devices,
)
from strategy.routing import (
    backlog_s,
    count_up,
    finish_times_s,
    first_come,
    first_to_finish,
    fits,
    largest,
    least_cost,
    prefill_times_s,
    throughput_weights,
    weighted_turn,
    work_s,
)

__all__ = [
    "EMPTY_PLAN",
    "REJECT",
    "Demand",
    "DeploymentOption",
    "DeviceView",
    "Load",
    "Memo",
    "Observation",
    "Plan",
    "ReplayMode",
    "ReplicaKey",
    "ReplicaSpec",
    "ReplicaView",
    "RequestView",
    "Role",
    "Sequence",
    "Slo",
    "added_and_removed",
    "backlog_s",
    "batch_size",
    "best_options",
    "count_up",
    "differs",
    "expected_loads",
    "fill",
    "finish_times_s",
    "first_come",
    "first_to_finish",
    "fits",
    "groups",
    "holt",
    "keep",
    "largest",
    "least_cost",
    "loads",
    "longest_output_tokens",
    "option_for",
    "options_of",
    "past_values",
    "plan_makespan_s",
    "plan_serving_s",
    "prefill_times_s",
    "rates",
    "reconfiguration_s",
    "requests_per_s",
    "seconds_per_request",
    "serving_time_s",
    "shared_batch",
    "shrink",
    "slow_devices",
    "spec_of",
    "throughput_weights",
    "usable_devices",
    "weighted_turn",
    "work_s",
]
