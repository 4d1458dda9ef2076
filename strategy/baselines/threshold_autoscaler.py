"""Least loaded routing; the number of replicas follows thresholds on utilisation, with cooldown.

The usual autoscaler: above the high mark it adds replicas up to the target, below the low mark for some
windows it removes the least efficient ones, and after each change it rests. Online that saves device-hours.
In batch replay a window is done when its last request is: all devices are always wanted, and only the models'
shares of them change.
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
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
TAIL = 4.0  # 0 to 8: how far outputs run on beyond their prediction; more avoids slow steps
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one
HIGH = 0.7  # 0.5 to 1: utilisation above which replicas are added
LOW = 0.3  # 0.1 to 0.6: utilisation below which replicas are removed
TARGET = 0.5  # 0.3 to 0.9: utilisation after a change
CALM_WINDOWS = 2  # 0 to 8: windows of low utilisation before replicas are removed
GOOD_ENOUGH = 0.95  # 0 to 1: share of requests within the SLO below which replicas are added
COOLDOWN_WINDOWS = 2  # 0 to 8: windows of rest after a change


def should_replan(obs: Observation, memo: Memo) -> bool:
    """On a lost replica at once, or when too few were served well; else when utilisation has left its band
    and the last change has settled."""
    kept = keep(obs)
    if not kept or len(kept) < len(obs.plan.replicas):
        return True
    if obs.mode is ReplayMode.BATCH:
        return differs(obs.plan, _batch_layout(obs))
    used = _utilisation(obs)
    calm = memo.get("calm", 0.0) + 1.0 if used < LOW and not _suffers(obs) else 0.0
    memo["calm"] = calm
    if used > HIGH or _suffers(obs):
        return True
    return calm > CALM_WINDOWS and obs.ticks_since_replan >= COOLDOWN_WINDOWS


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Replicas for the target utilisation: add what is missing, or after some calm drop what is too much."""
    if obs.mode is ReplayMode.BATCH:
        return _batch_layout(obs)
    used = _utilisation(obs)
    until_s = TARGET * obs.window_s
    if memo.get("calm", 0.0) > CALM_WINDOWS:
        memo["calm"] = 0.0
        return Plan(shrink(obs, loads(obs), keep(obs), until_s), f"utilisation {used:.0%}: fewer replicas")
    if _suffers(obs):  # the estimate of what is needed was too low
        until_s *= min(1.0, used)
    return Plan(_grow(obs, until_s), f"utilisation {used:.0%}: more replicas")


def _batch_layout(obs: Observation) -> Plan:
    """All devices; a model that is done long before the last one gives replicas up to it."""
    kept = keep(obs)
    used = [_utilisation_of(obs, load) for load in loads(obs)]
    if used and min(used) < LOW * max(used) < math.inf and obs.ticks_since_replan >= COOLDOWN_WINDOWS:
        kept = shrink(obs, loads(obs), kept, TARGET * max(used) * obs.window_s)
    specs = fill(obs, loads(obs), kept, MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=CONCURRENCY)
    return Plan(specs, "batch: every device shortens the window")


def _suffers(obs: Observation) -> bool:
    """Whether too many requests of the last window missed the SLO."""
    return any(demand.finished > 0 and demand.goodput < GOOD_ENOUGH for demand in obs.demand)


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
