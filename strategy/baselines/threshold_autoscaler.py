"""Least loaded routing; the number of replicas follows thresholds on utilisation, with cooldown.

The usual autoscaler: above the high mark it adds replicas up to the target, below the low mark for some
windows it removes the least efficient ones, and after each change it rests. Online that saves device-hours.
In batch replay a window is done when its last request is: all devices are always wanted.
"""

import math

from strategy.policy_api import (
    Load,
    Memo,
    Observation,
    Plan,
    ReplayMode,
    ReplicaSpec,
    ReplicaView,
    RequestView,
    Sequence,
    differs,
    fill,
    first_come,
    first_to_finish,
    keep,
    loads,
    rates,
    shrink,
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 8192  # 512 to 16384: tokens of one iteration
TAIL = 2.0  # 0 to 8: steps that a request may run on, against its predicted output
CONCURRENCY = 1.0  # 0.1 to 4: batch assumed for the layout, against the expected; less favours larger groups
HIGH = 0.8  # 0.5 to 1: utilisation above which replicas are added
LOW = 0.45  # 0.1 to 0.6: utilisation below which replicas are removed
TARGET = 0.6  # 0.3 to 0.9: utilisation after a change
CALM_WINDOWS = 2  # 0 to 8: windows of low utilisation before replicas are removed
COOLDOWN_WINDOWS = 2  # 0 to 8: windows of rest after a change


def should_replan(obs: Observation, memo: Memo) -> bool:
    """On a lost replica at once; else when utilisation has left its band and the last change has settled."""
    kept = keep(obs)
    if not kept or len(kept) < len(obs.plan.replicas):
        return True
    if obs.mode is ReplayMode.BATCH:
        return differs(obs.plan, Plan(_grow(obs, 0.0)))
    used = _utilisation(obs)
    calm = memo.get("calm", 0.0) + 1.0 if used < LOW else 0.0
    memo["calm"] = calm
    if obs.ticks_since_replan < COOLDOWN_WINDOWS:
        return False
    return used > HIGH or calm > CALM_WINDOWS


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Replicas for the target utilisation: first drop what is too much, then add what is missing."""
    memo["calm"] = 0.0
    if obs.mode is ReplayMode.BATCH:
        return Plan(_grow(obs, 0.0), "batch: every device shortens the window")
    used = _utilisation(obs)
    until_s = TARGET * obs.window_s
    if used < LOW:
        return Plan(shrink(obs, loads(obs), keep(obs), until_s), f"utilisation {used:.0%}: fewer replicas")
    return Plan(_grow(obs, until_s), f"utilisation {used:.0%}: more replicas")


def _grow(obs: Observation, until_s: float) -> tuple[ReplicaSpec, ...]:
    return fill(
        obs, loads(obs), keep(obs), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=CONCURRENCY, until_s=until_s
    )


def _utilisation(obs: Observation) -> float:
    """Work of a window (backlog included) against what the replicas can do in it: of the worst model."""
    return max((_utilisation_of(obs, load) for load in loads(obs)), default=0.0)


def _utilisation_of(obs: Observation, load: Load) -> float:
    capacity = sum(rates(obs, keep(obs), load)) * obs.window_s
    if capacity <= 0:
        return math.inf if load.requests > 0 else 0.0
    return load.requests / capacity


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The replica with the least estimated backlog, in seconds."""
    return first_to_finish(request, replicas, TAIL)


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """First come, first served within a tier."""
    return first_come(request)
