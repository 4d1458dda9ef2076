"""GPUs, and how they hang together, as NVML describes them. Asks through telemetry's adapter; changes nothing."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from physical.inventory.facts import GpuFacts, NvLinkFacts, PairFacts
from physical.telemetry import nvml
from physical.telemetry.nvml import Nvml, Refusal

_COMMON = {0: "board", 10: "switch", 20: "switches", 30: "host-bridge", 40: "domain", 50: "system"}
_MAX_LINKS = 36
_P2P_READ, _P2P_NVLINK = 0, 2
_TO_GPU, _TO_SWITCH = 0, 2
Found = tuple[
    tuple[GpuFacts, ...], tuple[PairFacts, ...], tuple[NvLinkFacts, ...], str | None, tuple[str, ...]
]


def find_gpus(library: Nvml | None = None, root: Path = Path("/")) -> Found:
    """(GPUs, pairs, NVLinks, driver version, notes)."""
    library = library or Nvml()
    refused = library.open()
    if refused is not None:
        return (), (), (), None, (f"no NVIDIA GPU can be asked: {refused.text}",)
    try:
        return _look(library, root)
    finally:
        library.close()


def _look(library: Nvml, root: Path) -> Found:
    driver = library.text("nvmlSystemGetDriverVersion")
    gpus: list[GpuFacts] = []
    handles: list[Any] = []
    notes: list[str] = []
    for index, handle in library.handles():
        uuid = handle if isinstance(handle, Refusal) else library.uuid(handle)
        if isinstance(uuid, Refusal):
            notes.append(f"GPU {index} does not answer: {uuid.text}")
            continue
        gpus.append(_gpu(library, handle, index, uuid, root))
        handles.append(handle)
    pairs = [
        _pair(library, handles[i], handles[j], i, j)
        for i in range(len(gpus))
        for j in range(i + 1, len(gpus))
    ]
    links = [link for i in range(len(gpus)) for link in _nvlinks(library, handles[i], i, gpus)]
    return (
        tuple(gpus),
        tuple(pairs),
        tuple(links),
        None if isinstance(driver, Refusal) else driver,
        tuple(notes),
    )


def _gpu(library: Nvml, handle: Any, index: int, uuid: str, root: Path) -> GpuFacts:
    who = library.identity(handle, "", uuid)
    mig = library.ask("nvmlDeviceGetMigMode", handle)
    rates = library.ask("nvmlDeviceGetUtilizationRates", handle)
    processes = library.ask("nvmlDeviceGetComputeRunningProcesses", handle)
    watts = [
        None if value is None else value / 1e3
        for value in (
            library.number("nvmlDeviceGetEnforcedPowerLimit", handle),
            library.number("nvmlDeviceGetPowerUsage", handle),
        )
    ]
    return GpuFacts(
        index=index,
        name=who.name,
        uuid=uuid,
        pci_bus_id=who.pci_bus_id,
        memory_bytes=who.memory_bytes,
        power_limit_w=who.default_power_limit_w,
        enforced_power_limit_w=watts[0],
        power_w=watts[1],
        busy=isinstance(rates, Refusal)
        or rates.gpu > 0
        or isinstance(processes, Refusal)
        or len(processes) > 0,
        cores=_whole(library.number("nvmlDeviceGetNumGpuCores", handle)),
        max_sm_mhz=who.max_sm_clock_mhz,
        max_memory_mhz=library.number("nvmlDeviceGetMaxClockInfo", handle, nvml.MEMORY_CLOCK),
        bus_width_bits=_whole(library.number("nvmlDeviceGetMemoryBusWidth", handle)),
        pcie_generation=_whole(library.number("nvmlDeviceGetMaxPcieLinkGeneration", handle)),
        pcie_width=_whole(library.number("nvmlDeviceGetCurrPcieLinkWidth", handle)),
        max_pcie_width=_whole(library.number("nvmlDeviceGetMaxPcieLinkWidth", handle)),
        numa=_numa(library, handle, who.pci_bus_id, root),
        mig=None if isinstance(mig, Refusal) else bool(mig[0]),
    )


def _numa(library: Nvml, handle: Any, bus: str, root: Path) -> int | None:
    """The memory domain that a GPU hangs on: the kernel's word, else the driver's."""
    short = re.sub(r"^0{4}(?=[0-9a-fA-F]{4}:)", "", bus).lower()
    try:
        node = int((root / "sys/bus/pci/devices" / short / "numa_node").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        affinity = library.ask("nvmlDeviceGetMemoryAffinity", handle, 1, 0)
        bits = 0 if isinstance(affinity, Refusal) else int(affinity[0])
        return bits.bit_length() - 1 if bits and not bits & (bits - 1) else None
    return node if node >= 0 else None


def _pair(library: Nvml, a: Any, b: Any, i: int, j: int) -> PairFacts:
    level = library.number("nvmlDeviceGetTopologyCommonAncestor", a, b)
    read = library.number("nvmlDeviceGetP2PStatus", a, b, _P2P_READ)
    linked = library.number("nvmlDeviceGetP2PStatus", a, b, _P2P_NVLINK)
    return PairFacts(
        i, j, _COMMON.get(int(level) if level is not None else -1, "unknown"),
        None if read is None else read == 0, linked == 0,
    )  # fmt: skip


def _nvlinks(library: Nvml, handle: Any, index: int, gpus: Sequence[GpuFacts]) -> list[NvLinkFacts]:
    """Active links of one GPU, by what is at their other end."""
    by_bus = {gpu.pci_bus_id.lower(): number for number, gpu in enumerate(gpus)}
    ends: dict[int | None, int] = defaultdict(int)
    version: float | None = None
    for link in range(_MAX_LINKS):
        active = library.ask("nvmlDeviceGetNvLinkState", handle, link)
        if isinstance(active, Refusal):
            break
        if not active:
            continue
        version = library.number("nvmlDeviceGetNvLinkVersion", handle, link) or version
        remote = library.ask("nvmlDeviceGetNvLinkRemotePciInfo", handle, link)
        bus = "" if isinstance(remote, Refusal) else remote.busId
        name = bus.decode(errors="replace") if isinstance(bus, bytes) else str(bus)
        ends[by_bus.get(name.lower())] += 1
    speeds = library.fields(handle, [(nvml.NVLINK_SPEED_FIELD, 0)])
    mbps = None if isinstance(speeds, Refusal) else speeds.get(nvml.NVLINK_SPEED_FIELD)
    return [
        NvLinkFacts(index, peer, count, _whole(version), None if not mbps else count * mbps * 1e6)
        for peer, count in ends.items()
    ]


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
