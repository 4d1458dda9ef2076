"""Which packaged profile a found GPU or link is."""

from __future__ import annotations

import re

from hw_profiles.loader import packaged
from hw_profiles.schema import DeviceProfile, LinkProfile
from physical.inventory.facts import GpuFacts, NvLinkFacts

_GPUS = (
    (r"H100 80GB HBM3|H100 SXM", "h100-sxm"),
    (r"H200(?! NVL)", "h200"),
    (r"B200", "b200"),
    (r"A100-SXM4-80GB", "a100-sxm-80"),
    (r"A100-SXM4-40GB", "a100-sxm-40"),
    (r"A800-SXM4-80GB", "a800-sxm-80"),
    (r"A10G$", "a10g"),
    (r"A40$", "a40"),
    (r"L40S$", "l40s"),
    (r"L4$", "l4"),
    (r"Tesla T4$", "t4"),
    (r"V100-SXM2-16GB", "v100"),
    (r"GeForce RTX 4090$", "rtx-4090"),
    (r"RTX A6000$", "rtx-a6000"),
    (r"RTX PRO 6000 Blackwell", "rtx-pro-6000"),
)
_MEMORY_TOLERANCE = 0.1
_PCIE_LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.9846e9, 4: 1.9692e9, 5: 3.9385e9, 6: 7.5625e9}
"""One direction, after the coding of each generation."""


def packaged_gpu(gpu: GpuFacts) -> DeviceProfile | None:
    """The packaged profile of a GPU of this name, with a memory of about this size; None: there is none."""
    for pattern, name in _GPUS:
        if re.search(pattern, gpu.name):
            profile = packaged().devices.get(name)
            near = abs(profile.memory_bytes - gpu.memory_bytes) <= _MEMORY_TOLERANCE * profile.memory_bytes
            return profile if near else None
    return None


def pcie_bytes_per_s(generation: int, width: int) -> float | None:
    """One direction; None for a generation that is not known."""
    lane = _PCIE_LANE_BYTES_PER_S.get(generation)
    return None if lane is None else lane * width


def packaged_link(
    family: str, bytes_per_s: float, *, near: float = 0.02, besides: str = ""
) -> LinkProfile | None:
    """The packaged link of a family with about this bandwidth; None: there is none."""
    for link in packaged().links.all():
        same = link.family == family and link.name != besides
        if same and abs(link.bytes_per_s - bytes_per_s) <= near * link.bytes_per_s:
            return link
    return None


def packaged_nvlink(link: NvLinkFacts) -> LinkProfile | None:
    """The packaged NVLink of this version, when the bandwidth is its."""
    for candidate in packaged().links.all():
        same = candidate.family == "nvlink" and candidate.name.startswith(f"nvlink{link.version}")
        if same and (link.bytes_per_s is None or abs(candidate.bytes_per_s / link.bytes_per_s - 1) <= 0.1):
            return candidate
    return None


def slug(text: str) -> str:
    """A profile's name out of any text: lower case, letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unknown"
