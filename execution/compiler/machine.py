"""The hardware that an artifact and its verdict hold for."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_FIELDS = (
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "stepping",
    "flags",
    "Features",
    "CPU part",
    "cpu",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What native code was made for, and its speed measured on."""

    cpu: str
    """Model name, family and stepping."""
    flags: str
    """Hash of the instruction sets."""
    cpus: int
    """That this process may use: speeds were measured among so many."""
    system: str
    gpu: str = ""
    """Name, capability and driver of the GPU that the subject runs on."""

    @property
    def digest(self) -> str:
        """Short hash of all of it."""
        return hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()[:16]

    def differs(self, other: Mapping[str, object]) -> str:
        """In what, in words; empty: in nothing."""
        mine = asdict(self)
        return ", ".join(
            f"{name}: {other.get(name)!r} then, {mine[name]!r} now"
            for name in mine
            if mine[name] != other.get(name)
        )


@cache
def this_machine(device: str = "cpu") -> Machine:
    """Of this process. `cuda` devices are asked through torch."""
    told = _cpuinfo()
    flags = " ".join(sorted((told.get("flags") or told.get("Features") or platform.machine()).split()))
    names = ("vendor_id", "model name", "cpu family", "model", "stepping", "CPU part", "cpu")
    return Machine(
        cpu=" ".join(told[name] for name in names if name in told) or platform.processor() or "unknown",
        flags=hashlib.sha256(flags.encode()).hexdigest()[:16],
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        system=f"{platform.system()} {platform.machine()}",
        gpu="" if device == "cpu" else _gpu(device),
    )


def _cpuinfo() -> dict[str, str]:
    """Of the first processor."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs if name.strip() in _FIELDS}


def _gpu(device: str) -> str:
    import torch  # noqa: PLC0415 - heavy

    if not torch.cuda.is_available():
        return f"{device}: none"
    properties = torch.cuda.get_device_properties(torch.device(device))
    return f"{properties.name} sm_{properties.major}{properties.minor} cuda {torch.version.cuda}"
