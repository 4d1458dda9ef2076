"""A cluster as a graph: its devices, and what moving bytes between any two of them takes.

Vertices are devices, NUMA domains (`h100-0/numa1`), network ports (`h100-0/ib3`), the switch of a node
(`h100-0/fabric`) and networks (`net/ib`). Bytes never pass through a third device.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import networkx as nx

from hw_profiles.errors import ProfileError
from hw_profiles.schema import ClusterGroup, ClusterProfile, DeviceProfile, NodeProfile
from hw_profiles.yamlfile import Document, PathKey

if TYPE_CHECKING:
    from hw_profiles.loader import Catalogue, Shelf


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a cluster."""

    id: str
    """`<node>/<class><index>`, e.g. `h100-0/gpu3`."""
    kind: str
    """Name of its profile."""
    node: str
    profile: DeviceProfile
    spot: bool = False
    price_factor: float = 1.0

    @property
    def usd_per_hour(self) -> float:
        """What this device costs here, spot discount included."""
        return self.profile.usd_per_hour * self.price_factor


@dataclass(frozen=True, slots=True)
class Path:
    """The way between two devices."""

    bytes_per_s: float
    latency_s: float


HERE = Path(math.inf, 0.0)


class Topology:
    """Devices and nodes of a cluster in the order of its file. Read-only; paths are found once and kept.

    The bandwidth between two devices is that of the narrowest link on the widest path, the latency the
    least sum over the paths of that width. Transfers are taken one at a time: contention is the caller's.
    """

    def __init__(self, profile: ClusterProfile, catalogue: Catalogue, document: Document) -> None:
        self.name = profile.name
        self.profile = profile
        builder = _Builder(catalogue, document)
        builder.cluster(profile)
        self._devices = builder.devices
        self._nodes = {node: tuple(ids) for node, ids in builder.nodes.items()}
        self._shapes = builder.shapes
        self._graph: nx.Graph[str] = nx.freeze(builder.graph)
        self._paths: dict[str, dict[str, Path]] = {}

    @property
    def devices(self) -> Mapping[str, Device]:
        """By id, in order."""
        return MappingProxyType(self._devices)

    @property
    def nodes(self) -> Mapping[str, tuple[str, ...]]:
        """Node id -> its device ids, in order."""
        return MappingProxyType(self._nodes)

    @property
    def graph(self) -> nx.Graph[str]:
        """The frozen networkx graph. Vertices carry `role` (device, numa, port, fabric, network), edges
        `link` (name), `bytes_per_s`, `latency_s`."""
        return self._graph

    def node_shape(self, node: str) -> NodeProfile:
        """The shape that a node was made from."""
        return self._shapes[node]

    def path(self, a: str, b: str) -> Path:
        """Bandwidth and latency between two devices.

        Raises:
            ProfileError: no such device, or nothing joins the two.
        """
        if a == b and a in self._devices:
            return HERE
        found = self._paths.get(a)
        if found is None:
            found = self._paths[a] = self._paths_from(a)
        try:
            return found[b]
        except KeyError:
            self._known(b)
            raise ProfileError(f"cluster '{self.name}': nothing joins '{a}' and '{b}'") from None

    def bandwidth_bytes_per_s(self, a: str, b: str) -> float:
        """Of one transfer from a to b; infinite from a device to itself, 0 where nothing joins them."""
        try:
            return self.path(a, b).bytes_per_s
        except ProfileError:
            self._known(a)
            self._known(b)
            return 0.0

    def latency_s(self, a: str, b: str) -> float:
        """Of the widest path; infinite where nothing joins them."""
        return self.path(a, b).latency_s if self.bandwidth_bytes_per_s(a, b) else math.inf

    def transfer_s(self, nbytes: float, a: str, b: str) -> float:
        """Latency plus bytes over bandwidth; 0 from a device to itself, infinite where nothing joins them."""
        if a == b:
            self._known(a)
            return 0.0
        width = self.bandwidth_bytes_per_s(a, b)
        return self.latency_s(a, b) + nbytes / width if width else math.inf

    def group_bandwidth_bytes_per_s(self, ids: Sequence[str]) -> float:
        """The narrowest of all pairs: what a collective over the group is bound by. Infinite for one."""
        return min(
            (self.bandwidth_bytes_per_s(a, b) for i, a in enumerate(ids) for b in ids[i + 1 :]),
            default=math.inf,
        )

    def group_latency_s(self, ids: Sequence[str]) -> float:
        """The longest of all pairs; 0 for one."""
        return max((self.latency_s(a, b) for i, a in enumerate(ids) for b in ids[i + 1 :]), default=0.0)

    def __repr__(self) -> str:
        return f"Topology({self.name!r}, {len(self._devices)} devices, {len(self._nodes)} nodes)"

    def _known(self, device: str) -> None:
        if device not in self._devices:
            raise ProfileError(f"cluster '{self.name}' has no device '{device}'")

    def _paths_from(self, source: str) -> dict[str, Path]:
        """To every device that can be reached.

        First the width of the widest path to each, then, for each width that occurs, the least latency over
        links at least that wide: a narrow but quick first link must not hide a wide one.
        """
        self._known(source)
        widths = self._search(source, widest=True, at_least=0.0)
        widths = {target: width for target, width in widths.items() if target in self._devices}
        result: dict[str, Path] = {}
        for width in set(widths.values()):
            latencies = self._search(source, widest=False, at_least=width)
            for target, reached in widths.items():
                if reached == width:
                    result[target] = Path(width, latencies[target])
        return result

    def _search(self, source: str, *, widest: bool, at_least: float) -> dict[str, float]:
        """Dijkstra from one device over links of a width, never on through another device."""
        done: dict[str, float] = {}
        heap: list[tuple[float, str]] = [(-math.inf if widest else 0.0, source)]
        while heap:
            cost, vertex = heapq.heappop(heap)
            if vertex in done:
                continue
            done[vertex] = cost
            if vertex in self._devices and vertex != source:
                continue
            for neighbour, link in self._graph.adj[vertex].items():
                if neighbour in done or link["bytes_per_s"] < at_least:
                    continue
                onward = max(cost, -link["bytes_per_s"]) if widest else cost + link["latency_s"]
                heapq.heappush(heap, (onward, neighbour))
        del done[source]
        return {vertex: -cost for vertex, cost in done.items()} if widest else done


class _Builder:
    """Puts the graph together, and says at which line of which file a reference leads nowhere."""

    def __init__(self, catalogue: Catalogue, document: Document) -> None:
        self.catalogue = catalogue
        self.document = document
        self.graph: nx.Graph[str] = nx.Graph()
        self.devices: dict[str, Device] = {}
        self.nodes: dict[str, list[str]] = {}
        self.shapes: dict[str, NodeProfile] = {}

    def cluster(self, profile: ClusterProfile) -> None:
        """Networks, nodes, uplinks."""
        for name in profile.networks:
            self.graph.add_node(f"net/{name}", role="network")
        for index, group in enumerate(profile.nodes):
            self._group(group, ("nodes", index))
        for index, uplink in enumerate(profile.uplinks):
            a, b = (f"net/{end}" for end in uplink.between)
            self._link(a, b, uplink.link, self.document, ("uplinks", index, "link"), count=uplink.count)

    def _group(self, group: ClusterGroup, where: PathKey) -> None:
        shape, shape_document = _looked_up(self.catalogue.nodes, group.node, self.document, (*where, "node"))
        for nic in group.attach:
            if nic not in shape.nics:
                known = ", ".join(shape.nics) or "none"
                message = f"node shape '{shape.name}' has no NIC called '{nic}' (it has: {known})"
                raise ProfileError([self.document.problem((*where, "attach", nic), message)])
        for number in range(group.count):
            node = f"{group.name}-{number}"
            self.shapes[node] = shape
            self.node(node, shape, shape_document, group)

    def node(self, node: str, shape: NodeProfile, document: Document, group: ClusterGroup) -> None:
        """Devices, host, ports, fabric."""
        ids = self.nodes[node] = list(self._add_devices(node, shape, document, group))
        domains = [f"{node}/numa{i}" for i in range(shape.host.numa_domains)]
        for domain in domains:
            self.graph.add_node(domain, role="numa")
        if shape.host.numa_link is not None:
            for i, a in enumerate(domains):
                for b in domains[i + 1 :]:
                    self._link(a, b, shape.host.numa_link, document, ("host", "numa_link"))
        for index, device in enumerate(ids):
            domain = domains[index * len(domains) // len(ids)]
            profile = self.devices[device].profile
            if profile.class_ == "cpu":  # it owns the domain's memory: no link in between
                edge = {"link": "memory", "bytes_per_s": profile.memory_bytes_per_s, "latency_s": 0.0}
                self.graph.add_edge(device, domain, **edge)
            else:
                self._link(device, domain, shape.host.device_link, document, ("host", "device_link"))
        for name, nic in shape.nics.items():
            for index in range(nic.count):
                port = f"{node}/{name}{index}"
                self.graph.add_node(port, role="port")
                domain = domains[index * len(domains) // nic.count]
                self._link(port, domain, shape.host.device_link, document, ("host", "device_link"))
                if name in group.attach:
                    network = f"net/{group.attach[name]}"
                    self._link(port, network, nic.link, document, ("nics", name, "link"), latency_share=0.5)
        if shape.fabric is not None:
            self._fabric(node, ids, shape, document)

    def _add_devices(
        self, node: str, shape: NodeProfile, document: Document, group: ClusterGroup
    ) -> Iterator[str]:
        per_class: dict[str, int] = {}
        for index, entry in enumerate(shape.devices):
            profile, _ = _looked_up(
                self.catalogue.devices, entry.device, document, ("devices", index, "device")
            )
            for _ in range(entry.count):
                number = per_class.get(profile.class_, 0)
                per_class[profile.class_] = number + 1
                device = Device(
                    f"{node}/{profile.class_}{number}",
                    profile.name,
                    node,
                    profile,
                    spot=group.spot,
                    price_factor=group.price_factor,
                )
                self.devices[device.id] = device
                self.graph.add_node(device.id, role="device")
                yield device.id

    def _fabric(self, node: str, ids: list[str], shape: NodeProfile, document: Document) -> None:
        fabric = shape.fabric
        if fabric is None:
            return
        where: PathKey = ("fabric", "link")
        members = [i for i in ids if self.devices[i].profile.class_ == "gpu"]
        if fabric.device is not None:
            profile, _ = _looked_up(self.catalogue.devices, fabric.device, document, ("fabric", "device"))
            members = [i for i in ids if self.devices[i].kind == profile.name]
        if fabric.layout == "switch":
            self.graph.add_node(f"{node}/fabric", role="fabric")
            for device in members:
                # Half the latency on each side of a switch, so that a pair sees the link's once.
                self._link(device, f"{node}/fabric", fabric.link, document, where, latency_share=0.5)
            return
        pairs = (
            zip(members[::2], members[1::2], strict=False)
            if fabric.layout == "pairs"
            else ((a, b) for i, a in enumerate(members) for b in members[i + 1 :])
        )
        for a, b in pairs:
            self._link(a, b, fabric.link, document, where)

    def _link(
        self,
        a: str,
        b: str,
        link: str,
        document: Document,
        where: PathKey,
        *,
        count: int = 1,
        latency_share: float = 1.0,
    ) -> None:
        profile, _ = _looked_up(self.catalogue.links, link, document, where)
        edge: dict[str, Any] = {
            "link": profile.name,
            "bytes_per_s": profile.bytes_per_s * count,
            "latency_s": profile.latency_s * latency_share,
        }
        self.graph.add_edge(a, b, **edge)


def _looked_up(shelf: Shelf[Any], name: str, document: Document, where: PathKey) -> tuple[Any, Document]:
    """What a reference means; one that leads nowhere is a problem of the file that holds it."""
    try:
        found: tuple[Any, Document] = shelf.find(name)
    except ProfileError as error:
        if error.problems[0].file:  # the file that it leads to is wrong itself
            raise
        raise ProfileError([document.problem(where, error.problems[0].message)]) from error
    return found


def check_node(profile: NodeProfile, catalogue: Catalogue, document: Document) -> None:
    """Follow the references of a node shape.

    Raises:
        ProfileError: one leads nowhere.
    """
    group = ClusterGroup(name=profile.name, node=profile.name)
    _Builder(catalogue, document).node(profile.name, profile, document, group)
    for name, nic in profile.nics.items():
        _looked_up(catalogue.links, nic.link, document, ("nics", name, "link"))
