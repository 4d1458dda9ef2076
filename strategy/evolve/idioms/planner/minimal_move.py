"""Move towards the best layout by the few nodes that pay the most.

A full change makes every replica load its weights at once; most of the gain is often in a few nodes, and the
others go on serving meanwhile.
"""

from strategy.policy_api import (
    Memo,
    Observation,
    Plan,
    ReplicaSpec,
    fill,
    keep,
    loads,
    plan_makespan_s,
    reconfiguration_s,
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one
HORIZON_WINDOWS = 3.0  # 0.5 to 20: windows for which a layout is expected to stay right
COST_WEIGHT = 1.0  # 0.2 to 5: how much a second of stall counts against a second of serving saved
MAX_MOVES = 4  # 1 to 16: nodes that one plan changes


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """What serves with holes filled; then node by node of the fresh layout, the most valuable first."""
    expected = loads(obs)
    fresh = fill(obs, expected, (), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=CONCURRENCY)
    best = fill(obs, expected, keep(obs), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=CONCURRENCY)
    best_s = _cost_s(obs, best)
    for _ in range(MAX_MOVES):
        moves = [_moved(obs, best, fresh, node) for node in _nodes(obs, fresh, best)]
        costs = [_cost_s(obs, specs) for specs in moves]
        if not costs or min(costs) >= best_s:
            break
        best_s = min(costs)
        best = moves[costs.index(best_s)]
    return Plan(best, "the moves that pay the most")


def _nodes(obs: Observation, fresh: tuple[ReplicaSpec, ...], now: tuple[ReplicaSpec, ...]) -> list[str]:
    """Nodes on which the two layouts differ."""
    node_of = {device.id: device.node for device in obs.devices}
    differing = {spec.key for spec in fresh} ^ {spec.key for spec in now}
    return sorted({node_of[device] for key in differing for device in key.devices})


def _moved(
    obs: Observation, now: tuple[ReplicaSpec, ...], fresh: tuple[ReplicaSpec, ...], node: str
) -> tuple[ReplicaSpec, ...]:
    """The layout with one node as in the fresh one; what is left without a replica stays free."""
    node_of = {device.id: device.node for device in obs.devices}
    coming = [spec for spec in fresh if any(node_of[d] == node for d in spec.devices)]
    taken = {device for spec in coming for device in spec.devices}
    taken.update(device for device, home in node_of.items() if home == node)
    return (*(spec for spec in now if taken.isdisjoint(spec.devices)), *coming)


def _cost_s(obs: Observation, specs: tuple[ReplicaSpec, ...]) -> float:
    """Serving time over the horizon, and the stall of getting there."""
    stall_s = reconfiguration_s(obs, Plan(specs))
    return HORIZON_WINDOWS * plan_makespan_s(obs, specs, loads(obs)) + COST_WEIGHT * stall_s
