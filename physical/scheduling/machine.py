"""A machine as the scheduler sees it: units of several kinds, their memories, and the links between those.

A *hop* moves a version from one memory node to another and holds one lane of each of its links meanwhile; it
takes the sum of their latencies plus the bytes over the narrowest lane. A link of one stream serialises its
transfers; one of k streams carries k at a time, each at 1/k of the bandwidth; `streams=None` has room for all
of them at full bandwidth, that is: no contention. Where no hop joins two nodes the bytes are staged on the way
and stay there as a copy.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ROUTING_BYTES = 1e6
"""Routes are those that are quickest for this much."""


class MachineError(ValueError):
    """A machine that does not hold together; the message names the part."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Something that runs one task at a time."""

    name: str
    kind: str
    node: str
    """The memory it computes on."""


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of a wire (give a full-duplex wire two of them)."""

    name: str
    bytes_per_s: float
    latency_s: float = 0.0
    streams: int | None = 1

    @property
    def lane_bytes_per_s(self) -> float:
        """Of one transfer."""
        return self.bytes_per_s / (self.streams or 1)


@dataclass(frozen=True, slots=True)
class Hop:
    """A way from one memory node to another."""

    source: str
    target: str
    links: tuple[str, ...]


class Machine:
    """Units, memory nodes, links and the routes between nodes. Read-only.

    Raises:
        MachineError: names that are used twice or unknown, no unit, or a node that cannot be reached.
    """

    def __init__(
        self,
        name: str,
        units: Iterable[Unit],
        links: Iterable[Link] = (),
        hops: Iterable[Hop] = (),
        *,
        memory_bytes: Mapping[str, float] | None = None,
    ) -> None:
        """`memory_bytes`: what memories hold, but for the first one; those that are not named have no bound."""
        self.name = name
        self.memory_bytes = dict(memory_bytes or {})
        self.units = tuple(units)
        self.links = tuple(links)
        self.hops = tuple(hops)
        if not self.units:
            raise MachineError(f"machine '{name}' has no unit")
        _distinct(name, "unit", [unit.name for unit in self.units])
        _distinct(name, "link", [link.name for link in self.links])
        nodes = dict.fromkeys(unit.node for unit in self.units)
        for hop in self.hops:
            nodes.update(dict.fromkeys((hop.source, hop.target)))
        self.nodes = tuple(nodes)
        """Memory nodes; the first is where data lie that name no home."""
        for node, nbytes in self.memory_bytes.items():
            if node not in nodes:
                raise MachineError(f"machine '{name}' has no memory '{node}' (it has {', '.join(nodes)})")
            if not nbytes > 0:
                raise MachineError(f"machine '{name}': memory '{node}' holds {nbytes:g} bytes")
            if node == self.nodes[0]:
                raise MachineError(
                    f"machine '{name}': memory '{node}' is the first, where what fits nowhere goes: no bound, please"
                )
        self.kinds = tuple(dict.fromkeys(unit.kind for unit in self.units))
        self._links = {link.name: link for link in self.links}
        for link in self.links:
            if not (
                link.bytes_per_s > 0 and link.latency_s >= 0 and (link.streams is None or link.streams > 0)
            ):
                raise MachineError(f"machine '{name}': link '{link.name}' is {link}")
        for hop in self.hops:
            for used in hop.links:
                if used not in self._links:
                    raise MachineError(
                        f"machine '{name}': hop {hop.source}->{hop.target} uses no known link '{used}'"
                    )
        self._routes = {source: self._routes_from(source) for source in self.nodes}

    def __repr__(self) -> str:
        return f"Machine({self.name!r}, {len(self.units)} units, {len(self.nodes)} nodes)"

    def link(self, name: str) -> Link:
        """A link by name."""
        return self._links[name]

    def hop_s(self, hop: Hop, nbytes: float) -> float:
        """Time of one transfer over a hop that nobody else uses."""
        latency, per_byte = self.hop_cost(hop)
        return latency + nbytes * per_byte

    def hop_cost(self, hop: Hop) -> tuple[float, float]:
        """(latency in seconds, seconds a byte) of a hop."""
        links = [self._links[name] for name in hop.links]
        per_byte = 1.0 / min((link.lane_bytes_per_s for link in links), default=math.inf)
        return sum(link.latency_s for link in links), per_byte

    def route(self, source: str, target: str) -> tuple[Hop, ...]:
        """Hops from one node to another, in order. Raises MachineError where nothing joins them."""
        try:
            return self._routes[source][target]
        except KeyError:
            raise MachineError(
                f"machine '{self.name}': nothing joins memory '{source}' and '{target}'"
            ) from None

    def joined(self, source: str, target: str) -> bool:
        """Is there a route?"""
        return target in self._routes[source]

    def _routes_from(self, source: str) -> dict[str, tuple[Hop, ...]]:
        leaving: dict[str, list[Hop]] = {}
        for hop in self.hops:
            leaving.setdefault(hop.source, []).append(hop)
        done: dict[str, tuple[Hop, ...]] = {}
        heap: list[tuple[float, int, str, tuple[Hop, ...]]] = [(0.0, 0, source, ())]
        pushed = 0
        while heap:
            cost, _, node, way = heapq.heappop(heap)
            if node in done:
                continue
            done[node] = way
            for hop in leaving.get(node, ()):
                if hop.target not in done:
                    pushed += 1
                    onward = cost + self.hop_s(hop, ROUTING_BYTES)
                    heapq.heappush(heap, (onward, pushed, hop.target, (*way, hop)))
        return done


def host_with_accelerators(
    name: str,
    cpus: int,
    gpus: int,
    *,
    bytes_per_s: float,
    latency_s: float = 0.0,
    host_streams: int | None = 2,
    contention: bool = True,
) -> Machine:
    """CPU units on host memory, and GPUs each with a memory of its own behind a full-duplex wire.

    All transfers of one direction also share the host link: `host_streams` of them at a time at full
    speed, None for any number. From GPU to GPU bytes are staged in host memory. Without `contention` no wire
    is ever busy.
    """
    units = [Unit(f"cpu{i}", "cpu", "host") for i in range(cpus)]
    units += [Unit(f"gpu{i}", "gpu", f"gpu{i}") for i in range(gpus)]
    streams = 1 if contention else None
    links: list[Link] = []
    hops: list[Hop] = []
    shared = contention and host_streams is not None
    if shared and host_streams is not None:
        for way in ("down", "up"):
            links.append(Link(f"host-{way}", bytes_per_s * host_streams, 0.0, host_streams))
    for i in range(gpus):
        for way, source, target in (("down", "host", f"gpu{i}"), ("up", f"gpu{i}", "host")):
            links.append(Link(f"pcie{i}-{way}", bytes_per_s, latency_s, streams))
            hops.append(Hop(source, target, (f"pcie{i}-{way}", *([f"host-{way}"] if shared else []))))
    return Machine(name, units, links, hops)


def fully_joined(
    name: str,
    units: Iterable[Unit],
    bytes_per_s: float,
    latency_s: float = 0.0,
    *,
    streams: int | None = None,
) -> Machine:
    """Every memory node joined to every other by a wire of its own a direction; by default without
    contention, which is the machine of the HEFT literature."""
    units = tuple(units)
    nodes = tuple(dict.fromkeys(unit.node for unit in units))
    pairs = [(a, b) for a in nodes for b in nodes if a != b]
    links = [Link(f"{a}-{b}", bytes_per_s, latency_s, streams) for a, b in pairs]
    return Machine(name, units, links, [Hop(a, b, (f"{a}-{b}",)) for a, b in pairs])


def _distinct(machine: str, what: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise MachineError(f"machine '{machine}': two {what}s are named '{name}'")
        seen.add(name)
