"""Builds a cluster's graph from its profiles, and says where a reference leads nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import networkx as nx

from hw_profiles.errors import ProfileError
from hw_profiles.schema import ClusterGroup, ClusterProfile, NodeProfile
from hw_profiles.topology import Device, Topology
from hw_profiles.yamlfile import Document, PathKey

if TYPE_CHECKING:
    from hw_profiles.loader import Catalogue, Shelf


def assemble(profile: ClusterProfile, catalogue: Catalogue, document: Document) -> Topology:
    """The topology of a cluster, its nodes, devices and links taken from the catalogue.

    Raises:
        ProfileError: a reference leads nowhere, or to a profile that is wrong; at its line in `document`.
    """
    parts = _Assembly(catalogue, document)
    parts.cluster(profile)
    return Topology(profile, list(parts.devices.values()), parts.shapes, parts.graph)


def check_node(profile: NodeProfile, catalogue: Catalogue, document: Document) -> None:
    """Follow the references of a node shape.

    Raises:
        ProfileError: one leads nowhere.
    """
    group = ClusterGroup(name=profile.name, node=profile.name)
    _Assembly(catalogue, document).node(profile.name, profile, document, group)
    for name, nic in profile.nics.items():
        _looked_up(catalogue.links, nic.link, document, ("nics", name, "link"))


class _Assembly:
    """Puts the graph together, and says at which line of which file a reference leads nowhere."""

    def __init__(self, catalogue: Catalogue, document: Document) -> None:
        self.catalogue = catalogue
        self.document = document
        self.graph: nx.Graph[str] = nx.Graph()
        self.devices: dict[str, Device] = {}
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
            self.node(node, shape, shape_document, group)

    def node(self, node: str, shape: NodeProfile, document: Document, group: ClusterGroup) -> None:
        """Devices, host, ports, fabric."""
        self.shapes[node] = shape
        ids = list(self._add_devices(node, shape, document, group))
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
