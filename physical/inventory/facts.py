"""What was found on a machine. None stands for what it does not tell."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """All caches of one level and kind."""

    level: int
    kind: str
    """`unified`, `data` or `instruction`."""
    size_bytes: int
    """Of one of them."""
    count: int


@dataclass(frozen=True, slots=True)
class NumaFacts:
    """One memory domain."""

    id: int
    memory_bytes: int
    cpus: tuple[int, ...]
    distances: tuple[int, ...] = ()
    """To each domain, as the firmware says it (10: itself)."""


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """The processors."""

    model: str
    vendor: str
    sockets: int
    cores: int
    threads: int
    max_mhz: float | None
    flags: frozenset[str]
    numa: tuple[NumaFacts, ...]
    caches: tuple[CacheFacts, ...]
    seen_by: str
    """`hwloc` or `/sys`."""
    package_watts: float | None = None
    """Power limit of all packages together, by RAPL."""

    @property
    def memory_bytes(self) -> int:
        """Of all domains."""
        return sum(domain.memory_bytes for domain in self.numa)


@dataclass(frozen=True, slots=True)
class NvLinkFacts:
    """All links from one GPU to one peer, or to the switches."""

    gpu: int
    peer: int | None
    """None: a switch."""
    count: int
    version: int | None
    bytes_per_s: float | None
    """All of them, one direction."""


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU as its driver describes it."""

    index: int
    name: str
    uuid: str
    pci_bus_id: str
    memory_bytes: int
    power_limit_w: float | None
    """The default one."""
    enforced_power_limit_w: float | None
    power_w: float | None
    """Now."""
    busy: bool
    """Is anything running on it?"""
    cores: int | None
    max_sm_mhz: float | None
    max_memory_mhz: float | None
    bus_width_bits: int | None
    pcie_generation: int | None
    pcie_width: int | None
    max_pcie_width: int | None
    numa: int | None
    mig: bool | None


@dataclass(frozen=True, slots=True)
class PairFacts:
    """How two GPUs are joined."""

    a: int
    b: int
    common: str
    """The nearest thing that both hang on: `board`, `switch`, `switches`, `host-bridge`, `domain` or `system`."""
    peer_to_peer: bool | None
    nvlink: bool


@dataclass(frozen=True, slots=True)
class NicFacts:
    """A network port that is up."""

    name: str
    bytes_per_s: float
    infiniband: bool
    numa: int | None


@dataclass(frozen=True, slots=True)
class Measured:
    """What was timed, briefly."""

    memory_bytes_per_s: tuple[float, ...] = ()
    """By domain: its own CPUs copy, read and written bytes counted."""
    numa_bytes_per_s: float | None = None
    """The CPUs of one domain copy from the memory of another."""
    fp32_flops: float | None = None
    """All cores."""
    fp64_flops: float | None = None
    load_bytes_per_s: float | None = None
    """A file in the page cache into memory, one reader."""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """Everything."""

    cpu: CpuFacts
    gpus: tuple[GpuFacts, ...] = ()
    pairs: tuple[PairFacts, ...] = ()
    nvlinks: tuple[NvLinkFacts, ...] = ()
    nics: tuple[NicFacts, ...] = ()
    driver: str | None = None
    notes: tuple[str, ...] = ()
    """What could not be found out, and why."""
    measured: Measured = field(default_factory=Measured)
