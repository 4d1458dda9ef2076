"""What devices show of themselves: samples, windows, events, and forecasts of what comes.

None stands for what a device (or this driver, or this machine) does not tell; it never stands for 0.
Times are seconds of the sampler's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EventKind(StrEnum):
    """What can happen to a device, or to the library that shows it."""

    APPEARED = "appeared"
    LOST = "lost"
    """It answers no more: fallen off the bus, unplugged, or in need of a reset."""
    RETURNED = "returned"
    STALLED = "stalled"
    """A call into its driver does not come back."""
    ANSWERING = "answering"
    """The call came back after all."""
    SLOW = "slow"
    """Its calls take so long that it is sampled less often."""
    THROTTLING = "throttling"
    THROTTLING_ENDED = "throttling-ended"
    ECC_CORRECTED = "ecc-corrected"
    ECC_UNCORRECTED = "ecc-uncorrected"
    MIG_CHANGED = "mig-changed"
    """Somebody changed it; telemetry only looks."""
    CALL_FAILED = "call-failed"
    """One figure cannot be read at the moment; the others are."""
    NO_LIBRARY = "no-library"
    """No driver library on this machine, or no binding to it."""
    NO_DRIVER = "no-driver"
    """The library is there, and the driver does not answer it: unloaded, or of another version."""
    DRIVER_BACK = "driver-back"
    MISSING_SYMBOL = "missing-symbol"
    """The driver is too old to tell a figure."""
    OVER_BUDGET = "over-budget"
    """Sampling took more CPU time than it may: the period was stretched."""


@dataclass(frozen=True, slots=True)
class TelemetryEvent:
    """Something happened. Devices that vanish are events, never exceptions."""

    kind: EventKind
    device: str
    """Device id; empty: the library, or the sampler itself."""
    at_s: float
    detail: str = ""
    """In words: the reasons, the call, the driver's own message."""
    value: float = 0.0
    """A figure that belongs to it: errors counted, degrees, seconds stalled."""


@dataclass(frozen=True, slots=True)
class GpuIdentity:
    """What does not change while a device is there."""

    id: str
    """As in the topology: `<node>/gpu<number>`; the number stays with the UUID."""
    uuid: str
    name: str
    """The driver's own, e.g. `NVIDIA H100 80GB HBM3`."""
    pci_bus_id: str
    memory_bytes: int
    default_power_limit_w: float | None = None
    max_sm_clock_mhz: float | None = None
    slowdown_c: float | None = None
    """Where the hardware starts to throttle."""
    shutdown_c: float | None = None


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that has a context on a device."""

    pid: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One look at one GPU. Slow-changing figures are the latest ones known."""

    device: str
    at_s: float
    utilisation: float | None
    """Share of the driver's last period in which a kernel ran, 0 to 1."""
    memory_utilisation: float | None
    """Share of the period in which memory was read or written."""
    memory_used_bytes: float | None
    memory_total_bytes: float | None
    power_w: float | None
    power_limit_w: float | None
    temperature_c: float | None
    memory_temperature_c: float | None
    sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    throttle: tuple[str, ...]
    """Why clocks are held down now; empty: they are not (or it is not told)."""
    thermal_violation_s: float | None
    """Counter: how long clocks were held down by heat."""
    power_violation_s: float | None
    """Counter: ... by the power limit."""
    energy_joules: float | None
    """Counter, since the driver was loaded."""
    ecc_corrected: float | None
    """Counter, since the driver was loaded."""
    ecc_uncorrected: float | None
    pcie_tx_bytes_per_s: float | None
    pcie_rx_bytes_per_s: float | None
    pcie_replays: float | None
    """Counter."""
    nvlink_tx_bytes_per_s: float | None
    nvlink_rx_bytes_per_s: float | None
    mig: bool | None
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class HostSample:
    """One look at the machine itself."""

    device: str
    """`<node>/cpu0`: all sockets together."""
    at_s: float
    utilisation: float | None
    """Share of all CPU time that was busy, 0 to 1."""
    busiest_core: float | None
    run_queue: float | None
    """Tasks that run or wait for a CPU."""
    memory_used_bytes: float | None
    """Total less what the kernel could give out without swapping."""
    memory_total_bytes: float | None
    cpu_pressure: float | None
    """Share of the time since the last sample in which some task waited for a CPU (/proc/pressure)."""
    memory_pressure: float | None
    """... in which some task waited for memory."""
    io_pressure: float | None
    power_w: float | None
    """All packages, by RAPL."""
    temperature_c: float | None
    """The hottest thermal zone."""
    frequency_mhz: float | None
    """Mean over cores."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How one figure was distributed over a window."""

    count: int
    mean: float
    minimum: float
    p50: float
    p90: float
    p99: float
    maximum: float


@dataclass(frozen=True, slots=True)
class DeviceWindow:
    """One device over one window."""

    device: str
    samples: int
    figures: tuple[tuple[str, Spread], ...]
    """By the names of the sample's fields; what was never told is absent."""
    throttled_share: float
    """Of the samples; heat and power limits together."""
    throttle_reasons: tuple[str, ...]
    """All that occurred."""


@dataclass(frozen=True, slots=True)
class TelemetryWindow:
    """What telemetry saw between two instants: small enough for the journal."""

    began_s: float
    ended_s: float
    period_s: float
    """How often devices were looked at."""
    devices: tuple[DeviceWindow, ...]
    events: tuple[TelemetryEvent, ...]


@dataclass(frozen=True, slots=True)
class UnitReading:
    """What a forecaster needs to know of one unit at one instant, from telemetry and from whoever serves."""

    unit: str
    at_s: float
    queue: float | None = None
    """Work that waits: requests, tasks."""
    arrived: float | None = None
    """Counter of work that came."""
    served: float | None = None
    """Counter of work that was done."""
    memory_used_bytes: float | None = None
    memory_total_bytes: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    throttle: tuple[str, ...] = ()
    slowdown_c: float | None = None
    """Where the device throttles, when it tells."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """One quantity of one unit, some seconds ahead."""

    unit: str
    quantity: str
    """`queue`, `memory_bytes`, `temperature_c` or `throttling` (a probability)."""
    made_s: float
    horizon_s: float
    value: float
    low: float
    """`low` to `high` is to hold what comes in `confidence` of all cases."""
    high: float
    confidence: float


@dataclass(frozen=True, slots=True)
class ForecastScore:
    """How well forecasts of one quantity and horizon did."""

    unit: str
    quantity: str
    horizon_s: float
    count: int
    mean_absolute_error: float
    persistence_error: float
    """The same of saying that nothing changes."""
    skill: float
    """1 - squared error over persistence's: 1 is perfect, 0 no better than persistence, below 0 worse."""
    coverage: float | None
    """Share of outcomes inside low..high; None for a probability, which has no interval."""
    confidence: float
    """What the coverage should be."""


@dataclass(frozen=True, slots=True)
class TimeToThrottle:
    """When heat will hold a unit's clocks down, if its power stays as it is."""

    unit: str
    seconds: float | None
    """None: not within the horizon."""
    soonest_s: float | None
    """At the upper end of the interval; None: not even then."""
    limit_c: float | None
    """The temperature in question; None: unknown, so nothing can be said."""
    learned: bool = False
    """The limit was seen, not told."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of all units."""

    at_s: float
    forecasts: tuple[Forecast, ...]
    throttling: tuple[TimeToThrottle, ...]
    signals: tuple[tuple[str, float], ...]
    """The worst over all units, named and signed as in `Observation.signals`: each in [-1, 1], negative hurts."""
