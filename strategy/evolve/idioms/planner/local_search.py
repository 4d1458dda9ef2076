"""Improve the present layout node by node, as long as it pays.

Rebuilding one node at a time keeps the rest serving, so a large part of the gain comes at a small part of
the stall.
"""

from strategy.policy_api import (
    Memo,
    Observation,
    Plan,
    ReplicaSpec,
    fill,
    keep,
    loads,
    plan_serving_s,
    reconfiguration_s,
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 8192  # 512 to 16384: tokens of one iteration
HORIZON_WINDOWS = 3.0  # 0.5 to 20: windows for which a layout is expected to stay right
COST_WEIGHT = 1.0  # 0.2 to 5: how much a second of stall counts against a second of serving saved
SEARCH_CONCURRENCY = 0.5  # 0.1 to 4: batch assumed for rebuilt nodes, against the expected
MAX_REBUILDS = 12  # 1 to 64: nodes that one plan tries to rebuild


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Start from what serves with holes filled; accept each node's rebuilding that lowers the cost."""
    best = fill(obs, loads(obs), keep(obs), MAX_NUM_SEQS, MAX_BATCHED_TOKENS)
    best_s = _layout_cost_s(obs, best)
    node_of = {device.id: device.node for device in obs.devices}
    nodes = sorted({node_of[spec.devices[0]] for spec in best})
    for node in nodes[:MAX_REBUILDS]:
        others = tuple(s for s in best if all(node_of[d] != node for d in s.devices))
        for concurrency in (1.0, SEARCH_CONCURRENCY):
            rebuilt = fill(obs, loads(obs), others, MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=concurrency)
            cost_s = _layout_cost_s(obs, rebuilt)
            if cost_s < best_s:
                best, best_s = rebuilt, cost_s
    return Plan(best, "present layout, improved node by node")


def _layout_cost_s(obs: Observation, specs: tuple[ReplicaSpec, ...]) -> float:
    """Serving time over the horizon, and the stall of getting there."""
    serving_s = plan_serving_s(obs, specs, loads(obs)) * HORIZON_WINDOWS
    return serving_s + COST_WEIGHT * reconfiguration_s(obs, Plan(specs))
