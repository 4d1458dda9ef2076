"""A cluster of `hw_profiles` as a machine of the scheduler: a unit and a memory per device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import networkx as nx

from hw_profiles.topology import Topology
from physical.scheduling.machine import Hop, Link, Machine, MachineError, Unit


def machine_of(topology: Topology, devices: Sequence[str] | None = None) -> Machine:
    """The machine of some devices of a cluster, or of all.

    Each wire of the cluster becomes a link a direction that carries one transfer at a time; a transfer
    holds every wire of its way (the widest, then the quickest), so that devices behind one switch or socket
    contend. Kinds are the names of device profiles.

    Raises:
        MachineError: no such device, or none at all.
    """
    chosen = list(topology.devices if devices is None else devices)
    for device in chosen:
        if device not in topology.devices:
            raise MachineError(f"cluster '{topology.name}' has no device '{device}'")
    units = [Unit(device, topology.devices[device].kind, device) for device in chosen]
    links: dict[str, Link] = {}
    hops = []
    for source, target in itertools.permutations(chosen, 2):
        way = _way(topology, source, target)
        if way is None:
            continue
        names = []
        for a, b in itertools.pairwise(way):
            wire = topology.graph.edges[a, b]
            name = f"{a}>{b}"
            links.setdefault(name, Link(name, float(wire["bytes_per_s"]), float(wire["latency_s"])))
            names.append(name)
        hops.append(Hop(source, target, tuple(names)))
    return Machine(topology.name, units, links.values(), hops)


def _way(topology: Topology, source: str, target: str) -> list[str] | None:
    """Vertices from one device to another, never through a third."""
    width = topology.bandwidth_bytes_per_s(source, target)
    if width <= 0.0 or not math.isfinite(width):
        return None
    devices = topology.devices
    inner = [v for v in topology.graph if v not in devices or v in {source, target}]
    graph = topology.graph.subgraph(inner)
    wide = graph.edge_subgraph(
        [(a, b) for a, b, wire in graph.edges(data=True) if wire["bytes_per_s"] >= width]
    )
    way: list[str] = nx.shortest_path(wide, source, target, weight="latency_s")
    return way
