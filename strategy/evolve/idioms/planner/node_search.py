"""Search layouts node by node: give a node to that model and group size which lets the last request end soonest.

A rule fills all nodes alike; the best layout mixes: some nodes in large groups for long answers, some in small
ones for throughput, as many for each model as it needs (iterated best improvement over few steps).
"""

import math

from strategy.policy_api import (
    DeploymentOption,
    Load,
    Memo,
    Observation,
    Plan,
    ReplicaSpec,
    Role,
    fill,
    groups,
    keep,
    loads,
    plan_makespan_s,
    reconfiguration_s,
    requests_per_s,
    spec_of,
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
HORIZON_WINDOWS = 3.0  # 0.5 to 20: windows for which a layout is expected to stay right
CHURN_WINDOWS = 0.75  # 0.2 to 10: the same while devices come and go: the next change is near
COST_WEIGHT = 1.0  # 0.2 to 5: how much a second of stall counts against a second of serving saved
MIN_GAIN = 0.1  # 0.001 to 0.3: share of the serving time that a change must save to be believed
MAX_STEPS = 300  # 20 to 1000: layouts that one plan looks at


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """From the best of a few layouts on, change one node at a time as long as that lowers the cost."""
    expected = loads(obs)
    starts = [fill(obs, expected, keep(obs), MAX_NUM_SEQS, MAX_BATCHED_TOKENS)]
    for pace_weight in (0.0, 1.0, 2.0):
        starts.append(_anew(obs, expected, pace_weight))
    costs = [_cost_s(obs, specs) for specs in starts]
    costs[0] *= 1.0 - MIN_GAIN
    best_s = min(costs)
    best, steps, improved = starts[costs.index(best_s)], 0, True
    nodes = sorted({(d.node, d.kind) for d in obs.devices if d.available})
    while improved and steps < MAX_STEPS:
        improved = False
        for node, kind in nodes:
            for variant in _variants(obs, best, node, kind):
                steps += 1
                cost_s = _cost_s(obs, variant)
                if cost_s < 0.995 * best_s:
                    best, best_s, improved = variant, cost_s, True
            if steps >= MAX_STEPS:
                break
    return Plan(best, f"best of {steps} layouts, node by node")


def _anew(obs: Observation, expected: tuple[Load, ...], pace_weight: float) -> tuple[ReplicaSpec, ...]:
    """All nodes by one rule: throughput, and the pace of one token with this weight."""

    def rate(option: DeploymentOption, load: Load) -> float:
        step_s = option.decode_base_s + option.decode_per_seq_s
        return requests_per_s(option, load, MAX_NUM_SEQS) / math.pow(step_s, pace_weight)

    return fill(obs, expected, (), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, rate=rate)


def _variants(
    obs: Observation, specs: tuple[ReplicaSpec, ...], node: str, kind: str
) -> list[tuple[ReplicaSpec, ...]]:
    """The layout with this node empty, and with all of it in groups of each option."""
    here = {device.id for device in obs.devices if device.node == node}
    elsewhere = {device.id for device in obs.devices} - here
    others = tuple(spec for spec in specs if here.isdisjoint(spec.devices))
    taken = elsewhere.union(device for spec in others for device in spec.devices)
    variants = [others] if others else []
    for option in obs.options:
        if option.kind == kind:
            found = groups(obs, kind, option.tp * option.pp, taken)
            new = [spec_of(option, ids, Role.MIXED, MAX_NUM_SEQS, MAX_BATCHED_TOKENS) for ids in found]
            if new:
                variants.append((*others, *new))
    return variants


def _cost_s(obs: Observation, specs: tuple[ReplicaSpec, ...]) -> float:
    """Serving time over the horizon, and the stall of getting there."""
    stall_s = reconfiguration_s(obs, Plan(specs))
    horizon = CHURN_WINDOWS if obs.changes else HORIZON_WINDOWS
    return horizon * plan_makespan_s(obs, specs, loads(obs)) + COST_WEIGHT * stall_s
