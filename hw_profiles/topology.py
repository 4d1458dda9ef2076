"""A cluster as a graph: its devices, and what moving bytes between any two of them takes.

Vertices are devices, NUMA domains (`h100-0/numa1`), network ports (`h100-0/ib3`), the switch of a node
(`h100-0/fabric`) and networks (`net/ib`). Bytes never pass through a third device.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import networkx as nx

from hw_profiles.errors import ProfileError
from hw_profiles.schema import ClusterProfile, DeviceProfile, NodeProfile

if TYPE_CHECKING:
    pass


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

    def __init__(
        self,
        profile: ClusterProfile,
        devices: Sequence[Device],
        shapes: Mapping[str, NodeProfile],
        graph: nx.Graph[str],
    ) -> None:
        """From parts that fit together: `hw_profiles.assembly.assemble` makes them from profiles."""
        self.name = profile.name
        self.profile = profile
        self._devices = {device.id: device for device in devices}
        self._shapes = dict(shapes)
        held: dict[str, list[str]] = {node: [] for node in shapes}
        for device in devices:
            held[device.node].append(device.id)
        self._nodes = {node: tuple(ids) for node, ids in held.items()}
        self._graph: nx.Graph[str] = nx.freeze(graph)
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
