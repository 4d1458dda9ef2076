"""Choose the groups of each node by dynamic programming, the best sum of throughput for its devices.

Filling greedily by throughput per device may leave devices over that no group fits; the knapsack (Bellman
1957) looks at all ways to split a node.
"""

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
    loads,
    rates,
    requests_per_s,
    spec_of,
    usable_devices,
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
KNAPSACK_BATCH = 64  # 4 to 512: requests that a replica is assumed to run together
SIZE_BONUS = 0.0  # -0.5 to 0.5: how much more a group counts with each doubling of its devices


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Node by node the best split for the model that is covered least; what is left over is filled."""
    expected = loads(obs)
    nodes: dict[tuple[str, str], int] = {}
    for device in usable_devices(obs):
        nodes[device.kind, device.node] = nodes.get((device.kind, device.node), 0) + 1
    specs: list[ReplicaSpec] = []
    for (kind, node), room in sorted(nodes.items(), key=lambda item: (-item[1], item[0])):
        ranked = sorted(expected, key=lambda load: (_covered(obs, specs, load), load.model))
        splits = [split for load in ranked if (split := _best_split(obs, kind, room, load))]
        if splits:
            specs += _placed(obs, kind, node, splits[0])
    filled = fill(obs, expected, specs, MAX_NUM_SEQS, MAX_BATCHED_TOKENS)
    return Plan(filled, "each node split by knapsack")


def _covered(obs: Observation, specs: list[ReplicaSpec], load: Load) -> float:
    """Throughput so far against the load."""
    return sum(rates(obs, specs, load)) / max(1e-3, load.requests)


def _best_split(obs: Observation, kind: str, room: int, load: Load) -> tuple[DeploymentOption, ...]:
    """The multiset of options of the most throughput that fits into so many devices."""
    best: list[tuple[float, tuple[DeploymentOption, ...]]] = [(0.0, ())] * (room + 1)
    options = [o for o in obs.options if o.model == load.model and o.kind == kind and o.tp * o.pp <= room]
    for used in range(1, room + 1):
        best[used] = best[used - 1]
        for option in options:
            size = option.tp * option.pp
            if size <= used:
                worth = requests_per_s(option, load, KNAPSACK_BATCH) * size**SIZE_BONUS
                if worth > 0 and best[used - size][0] + worth > best[used][0]:
                    best[used] = (best[used - size][0] + worth, (*best[used - size][1], option))
    return best[room][1]


def _placed(obs: Observation, kind: str, node: str, split: tuple[DeploymentOption, ...]) -> list[ReplicaSpec]:
    """The options on the devices of a node, large ones first so that small ones fill the gaps."""
    node_of = {device.id: device.node for device in obs.devices}
    taken: set[str] = {device for device, home in node_of.items() if home != node}
    placed = []
    for option in sorted(split, key=lambda o: -o.tp * o.pp):
        found = groups(obs, kind, option.tp * option.pp, taken)
        if found:
            taken.update(found[0])
            placed.append(spec_of(option, found[0], Role.MIXED, MAX_NUM_SEQS, MAX_BATCHED_TOKENS))
    return placed
