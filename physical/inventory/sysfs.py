"""Processors, memory domains, caches and network ports as Linux shows them in /sys and /proc."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil

from physical.inventory.facts import CacheFacts, CpuFacts, NicFacts, NumaFacts


def cpu_list(text: str) -> tuple[int, ...]:
    """`0-3,8` as (0, 1, 2, 3, 8). Raises ValueError on anything else."""
    found: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    return tuple(found)


def find_cpu(root: Path = Path("/")) -> CpuFacts:
    """What the kernel tells of the processors and their memory."""
    cpus = sorted(
        int(path.name[3:])
        for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*")
        if _text(path / "online") != "0"
    )
    info = _cpuinfo(root)
    places = [_place(root, cpu) for cpu in cpus]
    mhz = [
        value * 1e-3
        for cpu in cpus
        if (value := _number(root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq"))
    ]
    return CpuFacts(
        model=info.get("model name", ""),
        vendor={"GenuineIntel": "intel", "AuthenticAMD": "amd"}.get(info.get("vendor_id", ""), "generic"),
        sockets=max(1, len({package for package, _ in places})),
        cores=max(1, len(set(places))),
        threads=max(1, len(cpus)),
        max_mhz=max(mhz, default=None),
        flags=frozenset(info.get("flags", info.get("Features", "")).split()),
        numa=_domains(root, cpus),
        caches=_caches(root, cpus),
        seen_by="/sys",
        package_watts=package_watts(root),
    )


def package_watts(root: Path) -> float | None:
    """What the packages may draw for long, by RAPL; None where there is none."""
    limits = [
        value * 1e-6
        for path in (root / "sys/class/powercap").glob("intel-rapl:*")
        if path.name.count(":") == 1 and (value := _number(path / "constraint_0_power_limit_uw"))
    ]
    return sum(limits) if limits else None


def find_nics(root: Path = Path("/")) -> tuple[tuple[NicFacts, ...], tuple[str, ...]]:
    """(ports that are up and tell their speed, notes on those that do not)."""
    found, notes = [], []
    for path in sorted((root / "sys/class/net").glob("*")):
        if not (path / "device").exists() or _text(path / "operstate") == "down":
            continue
        speed = _number(path / "speed")
        if speed is None or speed <= 0:
            notes.append(f"network port {path.name} does not tell its speed: left out")
            continue
        found.append(NicFacts(path.name, speed * 1e6 / 8, infiniband=False, numa=_node_of(path / "device")))
    for path in sorted((root / "sys/class/infiniband").glob("*/ports/*")):
        rate = re.match(r"([\d.]+) Gb/sec", _text(path / "rate"))
        if rate and "ACTIVE" in _text(path / "state"):
            name = f"{path.parents[1].name}/{path.name}"
            found.append(NicFacts(name, float(rate[1]) * 1e9 / 8, True, _node_of(path.parents[1] / "device")))
    return tuple(found), tuple(notes)


def _domains(root: Path, cpus: list[int]) -> tuple[NumaFacts, ...]:
    found = []
    for path in sorted((root / "sys/devices/system/node").glob("node[0-9]*"), key=lambda p: int(p.name[4:])):
        memory = re.search(r"MemTotal:\s+(\d+) kB", _text(path / "meminfo"))
        if memory and int(memory[1]):
            distances = tuple(int(word) for word in _text(path / "distance").split())
            own = cpu_list(_text(path / "cpulist"))
            found.append(NumaFacts(int(path.name[4:]), int(memory[1]) * 1024, own, distances))
    memory = re.search(r"MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo"))
    total = int(memory[1]) * 1024 if memory else int(psutil.virtual_memory().total)
    if not found:
        return (NumaFacts(0, total, tuple(cpus)),)
    if len(found) == 1:  # memory that was added to a running machine is not counted by the node
        return (replace(found[0], memory_bytes=max(total, found[0].memory_bytes)),)
    return tuple(found)


def _caches(root: Path, cpus: list[int]) -> tuple[CacheFacts, ...]:
    """Caches that several CPUs share are counted once."""
    seen: set[tuple[int, str, int, str]] = set()
    for cpu in cpus:
        for path in (root / f"sys/devices/system/cpu/cpu{cpu}/cache").glob("index*"):
            size = re.match(r"(\d+)([KM]?)", _text(path / "size"))
            level = _number(path / "level")
            if size and level:
                nbytes = int(size[1]) * {"": 1, "K": 1024, "M": 1 << 20}[size[2]]
                shared = _text(path / "shared_cpu_list") or str(cpu)
                seen.add((int(level), _text(path / "type").lower(), nbytes, shared))
    counts = Counter((level, kind, nbytes) for level, kind, nbytes, _ in seen)
    return tuple(CacheFacts(*key, count) for key, count in sorted(counts.items()))


def _place(root: Path, cpu: int) -> tuple[str, str]:
    """(package, core) of one CPU; hyperthreads share both."""
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    return _text(topology / "physical_package_id") or "0", _text(topology / "core_id") or str(cpu)


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's entry."""
    found: dict[str, str] = {}
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found


def _node_of(device: Path) -> int | None:
    node = _number(device / "numa_node")
    return int(node) if node is not None and node >= 0 else None


def _text(path: Path) -> str:
    """A file's text; empty when there is none to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None
