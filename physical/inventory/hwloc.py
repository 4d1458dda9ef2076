"""Processors, memory domains and caches from hwloc's XML (`lstopo --of xml`), where it is installed.

hwloc knows more machines than we do; what its XML does not hold (clock, flags) is taken from /sys.
"""

from __future__ import annotations

import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace

from physical.inventory.facts import CacheFacts, CpuFacts, NumaFacts

_TIMEOUT_S = 20.0
_CACHES = {f"L{level}Cache": (level, "unified") for level in range(1, 6)} | {
    f"L{level}iCache": (level, "instruction") for level in range(1, 4)
}
_KINDS = {"0": "unified", "1": "data", "2": "instruction"}


class HwlocError(ValueError):
    """An XML that hwloc did not write, or that holds no machine."""


def lstopo_xml() -> str | None:
    """What `lstopo` says of this machine; None where there is none, or it fails."""
    program = shutil.which("lstopo-no-graphics") or shutil.which("lstopo")
    if program is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - found in PATH, fixed arguments
            [program, "--of", "xml", "-"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout


def read_hwloc(xml: str, base: CpuFacts) -> CpuFacts:
    """`base` with sockets, cores, domains and caches as hwloc sees them.

    Raises:
        HwlocError: no XML of hwloc.
    """
    try:
        topology = ET.fromstring(xml)  # noqa: S314 - written by a local program
    except ET.ParseError as error:
        raise HwlocError(f"is no XML: {error}") from error
    objects = [(item, item.get("type", "")) for item in topology.iter("object")]
    kinds = Counter(kind for _, kind in objects)
    if not kinds["PU"]:
        raise HwlocError("holds no processing unit: hwloc did not write it")
    domains = [_domain(item) for item, kind in objects if kind == "NUMANode"]
    domains = [domain for domain in domains if domain.memory_bytes]
    caches: Counter[tuple[int, str, int]] = Counter()
    for item, kind in objects:
        if kind in _CACHES:
            level, content = _CACHES[kind]
            caches[
                level, _KINDS.get(item.get("cache_type", ""), content), int(item.get("cache_size", 0))
            ] += 1
    model = next(
        (info.get("value", "") for info in topology.iter("info") if info.get("name") == "CPUModel"),
        base.model,
    )
    return replace(
        base,
        model=model,
        sockets=max(1, kinds["Package"] or kinds["Socket"]),
        cores=max(1, kinds["Core"]),
        threads=kinds["PU"],
        numa=tuple(_with_distances(domains, base.numa)) or base.numa,
        caches=tuple(CacheFacts(*key, count) for key, count in sorted(caches.items()) if key[2]),
        seen_by="hwloc",
    )


def _domain(item: ET.Element) -> NumaFacts:
    try:
        return NumaFacts(
            int(item.get("os_index", 0)), int(item.get("local_memory", 0)), _cpuset(item.get("cpuset", ""))
        )
    except ValueError as error:
        raise HwlocError(f"NUMANode: {error}") from error


def _with_distances(domains: list[NumaFacts], known: tuple[NumaFacts, ...]) -> list[NumaFacts]:
    distances = {domain.id: domain.distances for domain in known}
    return [replace(domain, distances=distances.get(domain.id, ())) for domain in domains]


def _cpuset(text: str) -> tuple[int, ...]:
    """`0x00000001,0x0000000f` (32 bits a word, highest first) as CPU numbers."""
    bits = 0
    for word in text.split(","):
        bits = (bits << 32) | int(word or "0", 16)
    return tuple(number for number in range(bits.bit_length()) if bits >> number & 1)
