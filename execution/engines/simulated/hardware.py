"""The hardware that is pretended: costs and limits of one replica, from profiles and the performance model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from execution.engines.simulated.options import SimulatedOptions
from execution.twin.leap import BLOCK_TOKENS
from execution.twin.ports import Costs
from hw_profiles.errors import ProfileError
from hw_profiles.loader import list_clusters, load_cluster, load_device, load_model
from hw_profiles.performance import InfeasibleError, PerformanceModel
from hw_profiles.topology import Device, Topology
from loop.contracts.engine import EngineError


@dataclass(frozen=True, slots=True)
class Hardware:
    """Speed and capacity of the replica."""

    costs: Costs
    kv_capacity_tokens: int
    """Whole blocks."""
    max_model_len: int


def hardware_of(model: str, options: SimulatedOptions) -> Hardware:
    """Look everything up. Raises EngineError for unknown profiles, and for a model that does not fit."""
    try:
        profile = load_model(model)
        devices, topology = _devices(options)
        costs: Costs = _performance().replica(profile, devices, options.tp, options.pp, topology)
    except (ProfileError, InfeasibleError) as error:
        raise EngineError(f"simulated engine: {error}") from error
    capacity = options.kv_capacity_tokens or costs.kv_capacity_tokens
    capacity -= capacity % BLOCK_TOKENS
    if capacity < BLOCK_TOKENS:
        raise EngineError(
            f"simulated engine: a KV cache of {capacity} tokens holds not one block of {BLOCK_TOKENS}"
        )
    longest = min(options.max_model_len or profile.max_context_tokens, capacity)
    return Hardware(costs, capacity, longest)


@lru_cache(maxsize=1)
def _performance() -> PerformanceModel:
    return PerformanceModel.load()


def _devices(options: SimulatedOptions) -> tuple[list[Device], Topology | None]:
    """The replica's devices, and the cluster that they stand in (None: no packaged one has so many on a node)."""
    count = options.tp * options.pp
    if options.devices:
        return _named_devices(options, count)
    for name in (options.cluster,) if options.cluster else list_clusters():
        topology = load_cluster(name)
        for ids in topology.nodes.values():
            here = [topology.devices[i] for i in ids if topology.devices[i].kind == options.device]
            if len(here) >= count:
                return here[:count], topology
    profile = load_device(options.device)
    if options.cluster:
        raise EngineError(
            f"simulated engine: no node of cluster {options.cluster!r} has {count} devices of kind {options.device!r}"
        )
    return [Device(f"node/gpu{i}", profile.name, "node", profile) for i in range(count)], None


def _named_devices(options: SimulatedOptions, count: int) -> tuple[list[Device], Topology]:
    if not options.cluster:
        raise EngineError("simulated engine: option 'devices' names devices of a cluster: give 'cluster' too")
    topology = load_cluster(options.cluster)
    names = [name.strip() for name in options.devices.split(",")]
    missing = [name for name in names if name not in topology.devices]
    if missing:
        raise EngineError(
            f"simulated engine: cluster {options.cluster!r} has no device {missing[0]!r}; "
            f"it has {', '.join(list(topology.devices)[:4])}..."
        )
    if len(names) != count:
        raise EngineError(
            f"simulated engine: tp={options.tp} x pp={options.pp} needs {count} devices, not {len(names)}"
        )
    return [topology.devices[name] for name in names], topology
