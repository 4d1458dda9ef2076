"""Compares what a cluster file declares with what a machine was found to be, and names each difference.

Figures that nobody measured on the found machine (their source begins with `not measured`: `physical probe` writes it so)
are not compared, but listed. Prices, idle power and latencies are not compared at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hw_profiles.errors import ProfileError
from hw_profiles.schema import DeviceProfile
from hw_profiles.topology import Device, Topology
from hw_profiles.units import memory, si, three

TOLERANCE = 0.05
"""Figures that differ by less are the same."""
_NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as declared."""

    where: str
    """The declared node or device; `a - b` for what joins two."""
    what: str
    declared: str
    found: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: declared {self.declared}, found {self.found}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences, and what could not be compared."""

    differences: tuple[Difference, ...]
    skipped: tuple[str, ...]
    """`device: figure` that was declared and not measured."""

    @property
    def equal(self) -> bool:
        """Nothing differs."""
        return not self.differences


def compare(
    declared: Topology, found: Topology, *, node: str | None = None, tolerance: float = TOLERANCE
) -> Comparison:
    """Compare node by node. A found machine of one node is compared with the declared `node`; without one, with all
    declared nodes when they are of one shape.

    Raises:
        ProfileError: no such node, or it is not clear which one is meant.
    """
    differences: dict[Difference, None] = {}
    skipped: dict[str, None] = {}
    for mine, theirs in _pairs(declared, found, node):
        side = _Nodes(declared, found, mine, theirs, tolerance)
        differences |= dict.fromkeys(side.differences())
        skipped |= dict.fromkeys(side.skipped)
    return Comparison(tuple(differences), tuple(skipped))


def _pairs(declared: Topology, found: Topology, node: str | None) -> list[tuple[str, str]]:
    names, theirs = list(declared.nodes), list(found.nodes)
    if node is not None:
        if node not in names:
            raise ProfileError(f"cluster '{declared.name}' has no node '{node}' (it has: {', '.join(names)})")
        names = [node]
    if len(names) == len(theirs):
        return list(zip(names, theirs, strict=True))
    if len(theirs) == 1 and len({declared.node_shape(name).name for name in names}) == 1:
        return [(names[0], theirs[0])]
    raise ProfileError(
        f"cluster '{declared.name}' declares {len(names)} nodes and {found.name} holds {len(theirs)}: "
        f"say which one it is (--node {names[0]})"
    )


class _Nodes:
    """One declared node against one found."""

    def __init__(self, declared: Topology, found: Topology, mine: str, theirs: str, tolerance: float) -> None:
        self._declared, self._found = declared, found
        self._mine, self._theirs = mine, theirs
        self._tolerance = tolerance
        self.skipped: list[str] = []

    def differences(self) -> Iterator[Difference]:
        """Devices, then what joins them, then ports."""
        mine, theirs = self._by_class(self._declared, self._mine), self._by_class(self._found, self._theirs)
        both: list[tuple[Device, Device]] = []
        for kind in dict.fromkeys((*mine, *theirs)):
            if kind == "cpu" and kind not in mine:
                continue  # who declares GPUs need not declare the CPUs beside them
            here, there = mine.get(kind, []), theirs.get(kind, [])
            for device in here[len(there) :]:
                yield Difference(device.id, "device", device.kind, "none: it is missing")
            for device in there[len(here) :]:
                yield Difference(f"{self._mine}/{device.id.partition('/')[2]}", "device", "none", device.kind)
            both += zip(here, there, strict=False)
        for a, b in both:
            yield from self._device(a, b)
        yield from self._links(both)
        yield from self._ports()

    @staticmethod
    def _by_class(topology: Topology, node: str) -> dict[str, list[Device]]:
        groups: dict[str, list[Device]] = {}
        for name in topology.nodes[node]:
            device = topology.devices[name]
            groups.setdefault(device.profile.class_, []).append(device)
        return groups

    def _device(self, a: Device, b: Device) -> Iterator[Difference]:
        if a.profile.class_ == "gpu" and not _same_kind(a.profile, b.profile):
            yield Difference(a.id, "kind", a.kind, b.kind)
        if self._differ(a.profile.memory_bytes, b.profile.memory_bytes):
            yield Difference(a.id, "memory", memory(a.profile.memory_bytes), memory(b.profile.memory_bytes))
        for name, unit in (("memory_bytes_per_s", "B/s"), ("tdp_watts", "W")):
            if self._measured(a, b, name):
                mine, theirs = getattr(a.profile, name), getattr(b.profile, name)
                if self._differ(mine, theirs):
                    yield Difference(a.id, name, si(mine, unit), si(theirs, unit))
        if self._measured(a, b, "flops"):
            for dtype, value in a.profile.flops.items():
                other = b.profile.flops.get(dtype)
                if other is not None and self._differ(value, other):
                    yield Difference(a.id, f"flops.{dtype}", si(value, "FLOP/s"), si(other, "FLOP/s"))

    def _measured(self, a: Device, b: Device, figure: str) -> bool:
        if a.profile == b.profile:
            return True
        if b.profile.source_of(figure).startswith(_NOT_MEASURED):
            self.skipped.append(f"{a.id}: {figure}")
            return False
        return True

    def _links(self, both: list[tuple[Device, Device]]) -> Iterator[Difference]:
        """The way to the host, and between any two GPUs."""
        host = self._found.node_shape(self._theirs).source_of("host")
        mine = len(self._vertices(self._declared, self._mine, "numa"))
        theirs = len(self._vertices(self._found, self._theirs, "numa"))
        if mine != theirs:
            yield Difference(self._mine, "memory domains", str(mine), str(theirs))
        if f"device_link: {_NOT_MEASURED}" in host:
            self.skipped.append(f"{self._mine}: device_link")
        else:
            for a, b in both:
                yield from self._to_host(a, b, same_domains=mine == theirs)
        # Between the memory domains: only where that was timed.
        timed = f"numa_link: {_NOT_MEASURED}" not in host
        for i, (a, b) in enumerate(both):
            for c, d in both[i + 1 :]:
                if a.profile.class_ != "gpu" or c.profile.class_ != "gpu":
                    continue
                width = self._declared.bandwidth_bytes_per_s(a.id, c.id)
                other = self._found.bandwidth_bytes_per_s(b.id, d.id)
                if self._differ(width, other):
                    link = f"{si(other, 'B/s')}{'' if timed else ' (memory domains not timed)'}"
                    slower = "link slower" if other < width else "link faster"
                    yield Difference(f"{a.id} - {c.id}", slower, si(width, "B/s"), link)

    def _to_host(self, a: Device, b: Device, *, same_domains: bool) -> Iterator[Difference]:
        if a.profile.class_ == "cpu":
            return
        mine, theirs = self._host_edge(self._declared, a), self._host_edge(self._found, b)
        if mine and theirs and self._differ(mine[1], theirs[1]):
            slower = "link to the host slower" if theirs[1] < mine[1] else "link to the host faster"
            yield Difference(
                a.id, slower, f"{mine[0]} {si(mine[1], 'B/s')}", f"{theirs[0]} {si(theirs[1], 'B/s')}"
            )
        if mine and theirs and same_domains and mine[2] != theirs[2]:
            yield Difference(a.id, "memory domain", mine[2], theirs[2])

    @staticmethod
    def _host_edge(topology: Topology, device: Device) -> tuple[str, float, str] | None:
        """(link, bytes per second, domain) between a device and its memory domain."""
        for neighbour, edge in topology.graph.adj[device.id].items():
            if topology.graph.nodes[neighbour]["role"] == "numa":
                return edge["link"], edge["bytes_per_s"], neighbour.partition("/")[2]
        return None

    def _ports(self) -> Iterator[Difference]:
        """Network ports that were declared, by speed; those that were not are no concern."""
        mine = _rates(self._declared, self._mine)
        theirs = _rates(self._found, self._theirs)
        if mine and not theirs:
            self.skipped.append(f"{self._mine}: network ports (none tells its speed)")
            return
        for rate, count in mine.items():
            there = sum(n for other, n in theirs.items() if not self._differ(rate, other, 0.15))
            if there < count:
                yield Difference(
                    self._mine,
                    f"network ports of {si(rate, 'B/s')}",
                    three(count),
                    three(there) if there else "none",
                )

    @staticmethod
    def _vertices(topology: Topology, node: str, role: str) -> list[str]:
        return [
            vertex
            for vertex, data in topology.graph.nodes(data=True)
            if data["role"] == role and vertex.startswith(f"{node}/")
        ]

    def _differ(self, a: float, b: float, tolerance: float | None = None) -> bool:
        return abs(a - b) > (self._tolerance if tolerance is None else tolerance) * max(abs(a), abs(b))


def _rates(topology: Topology, node: str) -> dict[float, int]:
    """Attached ports by bandwidth: port -> network edges."""
    rates: dict[float, int] = {}
    for vertex, data in topology.graph.nodes(data=True):
        if data["role"] == "port" and vertex.startswith(f"{node}/"):
            for neighbour, edge in topology.graph.adj[vertex].items():
                if topology.graph.nodes[neighbour]["role"] == "network":
                    rates[edge["bytes_per_s"]] = rates.get(edge["bytes_per_s"], 0) + 1
    return rates


def _same_kind(a: DeviceProfile, b: DeviceProfile) -> bool:
    return a.name == b.name or b.name in a.aliases or a.name in b.aliases
