"""What templates must know of the processor: read from the machine, never assumed.

    cpu = detect()              # Cpu(lanes=8, registers=16, l1_bytes=32768, l2_bytes=524288, ...)

Of two machines that read the same here, one runs the other's artifacts.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cpu:
    """One core."""

    lanes: int
    """float32 numbers in a vector register."""
    registers: int
    """Vector registers."""
    l1_bytes: int
    l2_bytes: int
    model: str
    features: tuple[str, ...]
    """Instruction sets that matter here."""

    @property
    def fingerprint(self) -> str:
        """What an artifact's code depends on."""
        return f"{self.model}; {' '.join(self.features)}"


@cache
def detect() -> Cpu:
    """The processor of this machine."""
    return read(Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu/cpu0/cache"), platform.machine())


def read(cpuinfo: Path, caches: Path, machine: str) -> Cpu:
    """The processor that these files describe; the least common one where they are absent."""
    fields = _first_processor(cpuinfo)
    flags = set(fields.get("flags", fields.get("features", "")).split())
    known = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "asimd", "sve")
    lanes, registers = 4, 16
    if "avx2" in flags or "avx" in flags:
        lanes = 8
    if {"avx512f", "avx512bw"} <= flags:
        lanes, registers = 16, 32
    if machine in {"aarch64", "arm64"}:
        registers = 32
    sizes = _cache_sizes(caches)
    return Cpu(
        lanes=lanes,
        registers=registers,
        l1_bytes=sizes.get(1, 32 * 1024),
        l2_bytes=sizes.get(2, 512 * 1024),
        model=fields.get("model name", machine or "unknown"),
        features=tuple(name for name in known if name in flags),
    )


def _first_processor(cpuinfo: Path) -> dict[str, str]:
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    first = text.split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _cache_sizes(caches: Path) -> dict[int, int]:
    """Bytes by level, of what holds data."""
    sizes: dict[int, int] = {}
    for index in sorted(caches.glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text(encoding="utf-8").strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        units = {"K": 1024, "M": 1024 * 1024}
        if kind != "Instruction" and size[:-1].isdigit() and size[-1] in units:
            sizes[int(level)] = int(size[:-1]) * units[size[-1]]
    return sizes
