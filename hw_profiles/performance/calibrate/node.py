"""A node with equal devices and the link they usually have, for replaying what was measured on one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from hw_profiles.loader import packaged
from hw_profiles.schema import DeviceProfile
from hw_profiles.topology import Device

LINKS = {
    "h100-sxm": "nvlink4",
    "h200": "nvlink4",
    "b200": "nvlink5",
    "a100-sxm-80": "nvlink3",
    "a100-sxm-40": "nvlink3",
    "a800-sxm-80": "nvlink3-a800",
    "v100": "nvlink2",
    "mi300x": "infinity-fabric-mi300x",
    "rtx-pro-6000": "pcie5-x16",
}
"""Between the devices of one node; all others: PCIe 4.0 x16."""
DEFAULT_LINK = "pcie4-x16"


class Node:
    """`count` devices of one kind, any two joined by that link. What a replica needs of a topology."""

    def __init__(self, profile: DeviceProfile, count: int) -> None:
        link = packaged().links.get(LINKS.get(profile.name, DEFAULT_LINK))
        self._bytes_per_s, self._latency_s = float(link.bytes_per_s), float(link.latency_s)
        ids = [f"node/{i}" for i in range(count)]
        self._devices = {name: Device(name, profile.name, "node", profile) for name in ids}

    @property
    def devices(self) -> Mapping[str, Device]:
        """By id, in order."""
        return self._devices

    @property
    def nodes(self) -> Mapping[str, tuple[str, ...]]:
        """The one node."""
        return {"node": tuple(self._devices)}

    def bandwidth_bytes_per_s(self, a: str, b: str) -> float:
        """Of the link, whichever two."""
        del a, b
        return self._bytes_per_s

    def latency_s(self, a: str, b: str) -> float:
        """Of the link, whichever two."""
        del a, b
        return self._latency_s


@lru_cache(maxsize=256)
def node_of(profile: DeviceProfile, count: int) -> Node:
    """The node of `count` such devices; one object a kind and count."""
    return Node(profile, count)
