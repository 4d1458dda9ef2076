"""Which calls tell which figures of a GPU, how often each is asked, and what stands in where a driver is older."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from physical.telemetry import nvml
from physical.telemetry.store import GPU_COLUMNS

Columns = tuple[int, ...]


def columns(*names: str) -> Columns:
    """Where in a row these figures stand."""
    return tuple(GPU_COLUMNS.index(name) for name in names)


def column(name: str) -> int:
    """Where in a row this figure stands."""
    return GPU_COLUMNS.index(name)


@dataclass(frozen=True, slots=True)
class Reading:
    """One call, what it tells, and what else tells the same."""

    calls: tuple[str, ...]
    """The first that the driver knows is asked."""
    columns: Columns
    factor: float = 1.0
    """From the driver's unit to ours."""
    take: Callable[[Any], tuple[float, ...]] | None = None
    """From an answer of several figures to them, in our units; None: the answer is one number."""
    arguments: tuple[int, ...] = ()
    answer: str = ""
    """The C type of the answer, where the call is worth preparing (`Nvml.prepare`)."""

    def figures(self, answer: Any) -> tuple[float, ...]:
        """What an answer says."""
        return (answer * self.factor,) if self.take is None else self.take(answer)


@dataclass(frozen=True, slots=True)
class Field:
    """One figure of the batched call."""

    id: int
    column: int
    factor: float = 1.0
    scope: int = 0
    rate: bool = False
    """A counter of which the figure is the growth per second."""


FAST = (
    Reading(
        ("nvmlDeviceGetTemperature",), columns("temperature_c"), arguments=(nvml.GPU_SENSOR,), answer="uint"
    ),
    Reading(
        ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"),
        columns("throttle"),
        answer="ulonglong",
    ),
    Reading(("nvmlDeviceGetPowerUsage",), columns("power_w"), 1e-3, answer="uint"),
    Reading(
        ("nvmlDeviceGetUtilizationRates",),
        columns("utilisation", "memory_utilisation"),
        take=lambda rates: (rates.gpu / 100.0, rates.memory / 100.0),
        answer="c_nvmlUtilization_t",
    ),
)
"""Asked at every tick."""

MEDIUM = (
    Reading(
        ("nvmlDeviceGetMemoryInfo",),
        columns("memory_used_bytes", "memory_total_bytes"),
        take=lambda memory: (float(memory.used), float(memory.total)),
        answer="c_nvmlMemory_t",
    ),
    Reading(("nvmlDeviceGetClockInfo",), columns("sm_clock_mhz"), arguments=(nvml.SM_CLOCK,), answer="uint"),
    Reading(
        ("nvmlDeviceGetClockInfo",),
        columns("memory_clock_mhz"),
        arguments=(nvml.MEMORY_CLOCK,),
        answer="uint",
    ),
)
"""Asked twice a second."""

FIELDS = (
    Field(nvml.ECC_CORRECTED_FIELD, column("ecc_corrected")),
    Field(nvml.ECC_UNCORRECTED_FIELD, column("ecc_uncorrected")),
    Field(nvml.POWER_VIOLATION_FIELD, column("power_violation_s"), 1e-9),
    Field(nvml.THERMAL_VIOLATION_FIELD, column("thermal_violation_s"), 1e-9),
    Field(nvml.MEMORY_TEMPERATURE_FIELD, column("memory_temperature_c")),
    Field(nvml.ENERGY_FIELD, column("energy_joules"), 1e-3),
    Field(nvml.PCIE_REPLAY_FIELD, column("pcie_replays")),
    Field(nvml.PCIE_TX_FIELD, column("pcie_tx_bytes_per_s"), rate=True),
    Field(nvml.PCIE_RX_FIELD, column("pcie_rx_bytes_per_s"), rate=True),
    Field(nvml.NVLINK_TX_FIELD, column("nvlink_tx_bytes_per_s"), 1024.0, nvml.ALL_LINKS, rate=True),
    Field(nvml.NVLINK_RX_FIELD, column("nvlink_rx_bytes_per_s"), 1024.0, nvml.ALL_LINKS, rate=True),
)
"""Asked once a second, in one call."""

RARE = (
    Reading(
        ("nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetPowerManagementLimit"),
        columns("power_limit_w"),
        1e-3,
    ),
    Reading(("nvmlDeviceGetMigMode",), columns("mig"), take=lambda modes: (float(modes[0]),)),
)
"""Asked every ten seconds."""

STAND_INS = (
    *(
        (
            Reading(("nvmlDeviceGetTotalEccErrors",), columns(name), arguments=(which, nvml.VOLATILE)),
            False,
        )
        for which, name in ((nvml.CORRECTED, "ecc_corrected"), (nvml.UNCORRECTED, "ecc_uncorrected"))
    ),
    *(
        (
            Reading(("nvmlDeviceGetPcieThroughput",), columns(name), 1024.0, arguments=(counter,)),
            True,
        )
        for counter, name in enumerate(("pcie_tx_bytes_per_s", "pcie_rx_bytes_per_s"))
    ),
)
"""(call, rarely) for what the batched call does not tell: once a second, or every ten seconds, since asking for PCIe
traffic blocks for 20 ms."""
