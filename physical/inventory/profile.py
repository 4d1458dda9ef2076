"""A machine as profile files: devices, links, a node shape and a cluster of that one node, each figure with its source.

The format asks for figures that no machine tells (prices, what a card draws idle). Those are taken from a packaged
profile or set to 0, and their source says `not measured`: readers of the file, and `profiles validate`, know them by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hw_profiles.loader import packaged
from hw_profiles.schema import DeviceProfile
from hw_profiles.units import memory
from physical.inventory.facts import CpuFacts, GpuFacts, MachineFacts, NicFacts
from physical.inventory.naming import (
    packaged_gpu,
    packaged_link,
    packaged_nvlink,
    pcie_bytes_per_s,
    slug,
)

NOT_MEASURED = "not measured"
"""How the source of a figure begins that was not found on this machine."""
GROUP = "local"
"""The machine's group of nodes: its devices are `local-0/gpu0`... in telemetry too."""
_SIMD = (("avx512f", 64), ("avx2", 32), ("avx", 32), ("asimd", 16), ("sse2", 16))
"""Bytes of a vector register, by the flag that shows it."""


@dataclass(slots=True)
class Written:
    """The files of one machine, as plain values, by path relative to the cluster's file."""

    cluster: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def not_measured(self) -> list[str]:
        """`file: figures` for all that was assumed."""
        return [
            f"{path}: {key}"
            for path, content in self.parts.items()
            for key, source in content["sources"].items()
            if source.startswith(NOT_MEASURED)
        ]


def write_profile(facts: MachineFacts, name: str, *, usd_per_hour: float | None = None) -> Written:
    """The profile files of a machine; `name` is the cluster's and begins the names of its parts. `usd_per_hour` for the
    whole machine; None: not known.
    """
    written = Written(notes=list(facts.notes))
    price = _Price(facts, usd_per_hour)
    kinds = [_gpu_device(gpu, facts, written, price) for gpu in facts.gpus]
    cpu = _cpu_device(facts, name, written, price)
    node = _node(facts, name, cpu, kinds, written)
    written.parts[f"nodes/{node['name']}.yaml"] = node
    written.cluster = {
        "version": 1,
        "name": name,
        "title": _title(facts),
        "nodes": [
            {"name": GROUP, "node": node["name"], "attach": dict.fromkeys(node.get("nics", {}), "lan")}
        ],
        "networks": {"lan": {"title": "whatever the ports of this machine hang on"}}
        if "nics" in node
        else {},
        "sources": {"all": "physical probe: one machine"},
    }
    return written


class _Price:
    """The machine's price over its devices: GPUs carry it where there are any."""

    def __init__(self, facts: MachineFacts, usd_per_hour: float | None) -> None:
        self._known = usd_per_hour is not None
        self._gpu = (usd_per_hour or 0.0) / max(1, len(facts.gpus)) if facts.gpus else 0.0
        self._cpu = 0.0 if facts.gpus else (usd_per_hour or 0.0) / max(1, len(facts.cpu.numa))

    def of(self, *, gpu: bool) -> tuple[float, str]:
        """(figure, source)."""
        if not self._known:
            return 0.0, f"{NOT_MEASURED}: nobody said what this machine costs (--usd-per-hour)"
        return (self._gpu if gpu else self._cpu), "--usd-per-hour, over the devices"


def _gpu_device(gpu: GpuFacts, facts: MachineFacts, written: Written, price: _Price) -> str:
    """The kind of a GPU; its file is written when it is the first of its kind."""
    known = packaged_gpu(gpu)
    kind = known.name if known else slug(gpu.name.removeprefix("NVIDIA "))
    path = f"devices/{kind}.yaml"
    told = f"NVML, driver {facts.driver or 'unknown'}"
    usd, usd_source = price.of(gpu=True)
    content: dict[str, Any] = {
        "version": 1,
        "name": kind,
        "title": gpu.name or kind,
        "class": "gpu",
        "vendor": "nvidia",
        "architecture": known.architecture if known else "unknown",
        "memory_bytes": gpu.memory_bytes,
        "usd_per_hour": usd,
    }
    sources = {"memory_bytes": told, "usd_per_hour": usd_source}
    if gpu.power_limit_w:
        content["tdp_watts"], sources["tdp_watts"] = gpu.power_limit_w, f"{told}: default power limit"
    figures = _datasheet(known) if known else _derived(gpu, told)
    for key, (value, source) in figures.items():
        if key not in content:
            content[key], sources[key] = value, source
    if not gpu.busy and gpu.power_w is not None:
        content["idle_watts"], sources["idle_watts"] = (
            gpu.power_w,
            f"{told}: power with nothing running on it",
        )
    content["idle_watts"] = min(content["idle_watts"], content["tdp_watts"])
    content["sources"] = sources
    before = written.parts.setdefault(path, content)
    if abs(before["memory_bytes"] - content["memory_bytes"]) > 0.02 * before["memory_bytes"]:
        written.notes.append(
            f"GPU {gpu.index} has {memory(gpu.memory_bytes)}, another {kind} {memory(before['memory_bytes'])}: "
            "the profile holds the latter for both"
        )
    if gpu.mig:
        written.notes.append(f"GPU {gpu.index} is split by MIG: the profile shows it whole")
    return kind


def _datasheet(known: DeviceProfile) -> dict[str, tuple[Any, str]]:
    """What the packaged profile says, said to be that."""
    source = f"{NOT_MEASURED}: the packaged profile {known.name}, vendor figures"
    names = ("memory_bytes_per_s", "tdp_watts", "idle_watts", "host_load_bytes_per_s")
    found: dict[str, tuple[Any, str]] = {name: (getattr(known, name), source) for name in names}
    found["flops"] = dict(known.flops), source
    return found


def _derived(gpu: GpuFacts, told: str) -> dict[str, tuple[Any, str]]:
    """For a GPU that no packaged profile describes: what follows from its widths and clocks."""
    found: dict[str, tuple[Any, str]] = {
        "memory_bytes_per_s": (1e9, f"{NOT_MEASURED}: a floor; the driver tells no bus width or clock"),
        "flops": ({"fp32": 1e12}, f"{NOT_MEASURED}: a floor; the driver tells no cores or clock"),
        "tdp_watts": (100.0, f"{NOT_MEASURED}: a placeholder; the driver tells no power limit"),
        "idle_watts": (0.0, f"{NOT_MEASURED}: it was busy, or tells no power"),
        "host_load_bytes_per_s": (2.0e9, f"{NOT_MEASURED}: as the packaged profile cpu-socket"),
    }
    if gpu.bus_width_bits and gpu.max_memory_mhz:
        rate = gpu.bus_width_bits / 8 * gpu.max_memory_mhz * 1e6 * 2
        found["memory_bytes_per_s"] = rate, f"derived from {told}: bus width x memory clock x 2"
    if gpu.cores and gpu.max_sm_mhz:
        flops = {"fp32": gpu.cores * gpu.max_sm_mhz * 1e6 * 2}
        found["flops"] = flops, f"derived from {told}: cores x clock x 2; matrix units are not told"
    return found


def _cpu_device(facts: MachineFacts, name: str, written: Written, price: _Price) -> str:
    """One device for each memory domain, all of one kind."""
    cpu, measured = facts.cpu, facts.measured
    domains = len(cpu.numa)
    kind = f"{name}-cpu"
    template = packaged().devices.get("cpu-socket")
    share = cpu.cores / domains / 32  # the packaged socket has 32 cores
    scaled = f"{NOT_MEASURED} (--measure does): the packaged profile cpu-socket, by cores"
    usd, usd_source = price.of(gpu=False)
    content: dict[str, Any] = {
        "version": 1,
        "name": kind,
        "title": f"{cpu.model or 'CPU'}, {cpu.cores // domains} cores of {cpu.cores} ({cpu.threads} threads)",
        "class": "cpu",
        "vendor": cpu.vendor,
        "architecture": _level(cpu),
        "memory_bytes": min(domain.memory_bytes for domain in cpu.numa),
        "memory_bytes_per_s": round(template.memory_bytes_per_s * share),
        "flops": {},
        "tdp_watts": round(template.tdp_watts * share, 1),
        "idle_watts": 0.0,
        "usd_per_hour": usd,
        "host_load_bytes_per_s": template.host_load_bytes_per_s,
    }
    sources = {
        "memory_bytes": f"{cpu.seen_by}: the smallest memory domain",
        "memory_bytes_per_s": scaled,
        "tdp_watts": f"{NOT_MEASURED}: no RAPL; the packaged profile cpu-socket, by cores",
        "idle_watts": f"{NOT_MEASURED}",
        "usd_per_hour": usd_source,
        "host_load_bytes_per_s": scaled.replace(", by cores", ""),
    }
    if cpu.package_watts:
        content["tdp_watts"], sources["tdp_watts"] = (
            cpu.package_watts / domains,
            "RAPL: long-term power limit",
        )
    if measured.memory_bytes_per_s:
        content["memory_bytes_per_s"] = _three(min(measured.memory_bytes_per_s))
        sources["memory_bytes_per_s"] = "measured: all cores of a domain copy, bytes read and written"
    if measured.load_bytes_per_s:
        content["host_load_bytes_per_s"] = _three(measured.load_bytes_per_s)
        sources["host_load_bytes_per_s"] = "measured: one reader, from the page cache"
    content["flops"], sources["flops"] = _cpu_flops(facts, domains)
    content["sources"] = sources
    written.parts[f"devices/{kind}.yaml"] = content
    return kind


def _cpu_flops(facts: MachineFacts, domains: int) -> tuple[dict[str, float], str]:
    """(FLOP/s of one domain, source): measured, or derived from clock and vectors."""
    measured, cpu = facts.measured, facts.cpu
    if measured.fp32_flops and measured.fp64_flops:
        fp32 = _three(measured.fp32_flops / domains)
        figures = {"fp64": _three(measured.fp64_flops / domains), "fp32": fp32, "bf16": fp32}
        return figures, "measured: matrix products by numpy's BLAS on all cores; bf16 as fp32"
    width = next((size for flag, size in _SIMD if flag in cpu.flags), 16)
    clock = cpu.max_mhz or 2500.0
    each = cpu.cores / domains * clock * 1e6 * 2 * 2  # two units, a multiply-add counts as two
    figures = {"fp64": each * width / 8, "fp32": each * width / 4, "bf16": each * width / 4}
    said = f"{cpu.max_mhz:.0f} MHz" if cpu.max_mhz else "a clock of 2.5 GHz, which nobody told"
    return figures, (
        f"{NOT_MEASURED} (--measure does): derived, cores x 2 units x {8 * width} bit vectors at {said}"
    )


def _node(facts: MachineFacts, name: str, cpu: str, kinds: list[str], written: Written) -> dict[str, Any]:
    domains = len(facts.cpu.numa)
    devices, order_note = _in_order(facts, cpu, kinds)
    if order_note:
        written.notes.append(order_note)
    node: dict[str, Any] = {"version": 1, "name": f"{name}-node", "title": _title(facts), "devices": devices}
    sources = {
        "devices": f"{facts.cpu.seen_by}" + (f" and NVML, driver {facts.driver}" if facts.gpus else "")
    }
    fabric = _fabric(facts, name, written)
    if fabric is not None:
        node["fabric"] = fabric
    link, link_source = _device_link(facts, name, written)
    node["host"] = {"numa_domains": domains, "device_link": link}
    sources["host"] = f"numa_domains: {facts.cpu.seen_by}; device_link: {link_source}"
    if domains > 1:
        node["host"]["numa_link"], source = _numa_link(facts, name, written)
        sources["host"] += f"; numa_link: {source}"
    nics = dict(_nics(facts.nics, name, written))
    if nics:
        node["nics"] = nics
        sources["nics"] = "/sys/class/net and /sys/class/infiniband"
    node["sources"] = sources
    return node


def _in_order(facts: MachineFacts, cpu: str, kinds: list[str]) -> tuple[list[dict[str, Any]], str]:
    """Devices in the order of their domains, as the format spreads them; a note where it cannot tell the truth."""
    domains = [domain.id for domain in facts.cpu.numa]
    flat: list[str] = []
    places = [gpu.numa if gpu.numa in domains else None for gpu in facts.gpus]
    evenly = all(places.count(domain) * len(domains) == len(places) for domain in domains)
    ordered = places == sorted(places, key=lambda place: -1 if place is None else place)
    if len(domains) == 1 or not places or (evenly and ordered):
        share = len(kinds) // len(domains)
        for index in range(len(domains)):
            flat += [cpu, *kinds[index * share : (index + 1) * share]]
        note = ""
    else:
        flat = [*[cpu] * len(domains), *kinds]
        told = ", ".join(
            f"gpu{gpu.index} on {'an unknown domain' if gpu.numa is None else gpu.numa}" for gpu in facts.gpus
        )
        note = f"memory domains of the GPUs ({told}): the profile format spreads devices evenly and in order"
    entries: list[dict[str, Any]] = []
    for kind in flat:
        if entries and entries[-1]["device"] == kind:
            entries[-1]["count"] += 1
        else:
            entries.append({"device": kind, "count": 1})
    return entries, note


def _fabric(facts: MachineFacts, name: str, written: Written) -> dict[str, Any] | None:
    """NVLink between the GPUs, in the shape that fits; None without any."""
    if not facts.nvlinks or len(facts.gpus) < 2:
        return None
    peers = {link.peer for link in facts.nvlinks}
    pairs = {(link.gpu, link.peer) for link in facts.nvlinks if link.peer is not None}
    everyone = len(facts.gpus) * (len(facts.gpus) - 1)
    if None in peers:
        layout = "switch"
    elif len(pairs) == everyone and everyone > 2:
        layout = "mesh"
    elif all(b is not None and a // 2 == b // 2 for a, b in pairs):
        layout = "pairs"
    else:
        layout = "switch"
        written.notes.append("NVLink joins some GPUs and not others: the profile format takes it as a switch")
    first = facts.nvlinks[0]
    known = packaged_nvlink(first)
    if known is None and first.bytes_per_s is None:
        written.notes.append("NVLink is there, of an unknown speed: left out of the profile")
        return None
    link = known.name if known else f"{name}-nvlink"
    if known is None:
        latency = packaged().links.get("nvlink4").latency_s
        written.parts[f"links/{link}.yaml"] = _link_file(
            link, f"NVLink, {first.count} links", "nvlink", first.bytes_per_s or 0.0, latency,
            f"NVML: {first.count} links at their speed", f"{NOT_MEASURED}: as nvlink4",
        )  # fmt: skip
    return {"link": link, "layout": layout}


def _device_link(facts: MachineFacts, name: str, written: Written) -> tuple[str, str]:
    """The link between devices and host, (name, source): the narrowest, where they differ."""
    widths = {
        (gpu.pcie_generation, gpu.pcie_width) for gpu in facts.gpus if gpu.pcie_generation and gpu.pcie_width
    }
    if not widths:
        why = "the driver does not tell it" if facts.gpus else "there is no device on it"
        return "pcie4-x16", f"{NOT_MEASURED}, {why}: pcie4-x16 stands in"
    rates = {pair: pcie_bytes_per_s(*pair) for pair in widths}
    known_rates = {pair: rate for pair, rate in rates.items() if rate}
    if not known_rates:
        return "pcie5-x16", f"{NOT_MEASURED}: a PCIe generation that is not known"
    (generation, width), rate = min(known_rates.items(), key=lambda item: item[1])
    if len(widths) > 1:
        told = ", ".join(f"gen {g} x{w}" for g, w in sorted(widths))
        written.notes.append(
            f"GPUs hang on unlike PCIe links ({told}): the profile holds the narrowest for all"
        )
    known = packaged_link("pcie", rate)
    if known is not None:
        return known.name, f"NVML: generation {generation}, {width} lanes now; nominal rate, not timed"
    link = f"{name}-pcie"
    latency = packaged().links.get("pcie4-x16").latency_s
    written.parts[f"links/{link}.yaml"] = _link_file(
        link, f"PCI Express {generation}.0, {width} lanes", "pcie", rate, latency,
        f"NVML: generation {generation}, {width} lanes now; nominal rate, not timed",
        f"{NOT_MEASURED}: as pcie4-x16",
    )  # fmt: skip
    return link, f"NVML: generation {generation}, {width} lanes now"


def _numa_link(facts: MachineFacts, name: str, written: Written) -> tuple[str, str]:
    stand_in = "infinity-fabric-socket" if facts.cpu.vendor == "amd" else "upi2"
    rate = facts.measured.numa_bytes_per_s
    if rate is None:
        return stand_in, f"{NOT_MEASURED} (--measure does): {stand_in} stands in"
    link = f"{name}-numa"
    written.parts[f"links/{link}.yaml"] = _link_file(
        link, "Between memory domains", "socket", _three(rate), packaged().links.get(stand_in).latency_s,
        "measured: all cores of one domain read from another", f"{NOT_MEASURED}: as {stand_in}",
    )  # fmt: skip
    return link, "measured"


def _nics(nics: tuple[NicFacts, ...], name: str, written: Written) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ports by kind and speed."""
    groups: dict[tuple[bool, float], int] = {}
    for nic in nics:
        groups[nic.infiniband, nic.bytes_per_s] = groups.get((nic.infiniband, nic.bytes_per_s), 0) + 1
    for (infiniband, rate), count in groups.items():
        family = "infiniband" if infiniband else "ethernet"
        label = f"{'ib' if infiniband else 'eth'}{rate * 8 / 1e9:g}g".replace(".", "-")
        known = packaged_link(family, rate, near=0.15)
        link = known.name if known else f"{name}-{label}"
        if known is None:
            near = packaged().links.get("ib-ndr" if infiniband else "ethernet-10g")
            written.parts[f"links/{link}.yaml"] = _link_file(
                link, f"{family}, {rate * 8 / 1e9:g} Gb/s", family, rate, near.latency_s,
                "/sys: the port's speed", f"{NOT_MEASURED}: as {near.name}",
            )  # fmt: skip
        yield label, {"link": link, "count": count}


def _link_file(  # noqa: PLR0917 - the fields of a file, in their order
    name: str, title: str, family: str, rate: float, latency_s: float, source: str, latency_source: str
) -> dict[str, Any]:
    return {
        "version": 1,
        "name": name,
        "title": title,
        "family": family,
        "bytes_per_s": rate,
        "latency_s": latency_s,
        "sources": {"bytes_per_s": source, "latency_s": latency_source},
    }


def _title(facts: MachineFacts) -> str:
    kinds: dict[str, int] = {}
    for gpu in facts.gpus:
        kinds[gpu.name] = kinds.get(gpu.name, 0) + 1
    gpus = [f"{count} x {name}" for name, count in kinds.items()]
    return ", ".join([*gpus, f"{facts.cpu.cores} cores {facts.cpu.model}", memory(facts.cpu.memory_bytes)])


def _level(cpu: CpuFacts) -> str:
    for flag, level in (("avx512f", "x86-64-v4"), ("avx2", "x86-64-v3"), ("sse4_2", "x86-64-v2")):
        if flag in cpu.flags:
            return level
    return "aarch64" if "asimd" in cpu.flags else "unknown"


def _three(value: float) -> float:
    """Three digits: short measurements are no better."""
    return float(f"{value:.3g}")
