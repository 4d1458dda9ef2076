"""The body of a live run: what this machine's devices show, and are expected to show, while it serves.

Telemetry samples in threads of its own (a share of a core that is bounded); once a second the forecaster hears of it, and
of the work that waits. At monitoring points signals are felt, and the window goes to the journal. Devices that are
lost, or held down by heat or power, are shown to whoever plans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from loop.compose.serving_config import TelemetryConfigSection
from loop.compose.serving_world import ServingWorld
from loop.contracts import DeviceView, Metric
from loop.contracts.telemetry import (
    EventKind,
    Forecast,
    GpuIdentity,
    GpuSample,
    HostSample,
    Outlook,
    Spread,
    TelemetryEvent,
    TelemetryWindow,
    UnitReading,
)
from physical.forecast import Forecaster
from physical.forecast.readings import of_gpu, of_host
from physical.telemetry.sampler import Telemetry

_LOOK_S = 1.0
AHEAD_S = 30.0
"""The forecasts that are shown and journaled."""
_NODE = "local-0"
_DIGITS = 5
_GONE = {EventKind.LOST: True, EventKind.RETURNED: False, EventKind.APPEARED: False}
_QUIET = frozenset(
    {EventKind.NO_LIBRARY, EventKind.MISSING_SYMBOL, EventKind.APPEARED, EventKind.CALL_FAILED}
)
_LEAST_SPEED = 0.05


@dataclass(frozen=True, slots=True)
class Load:
    """Work of the whole server: what telemetry cannot know."""

    waiting: int
    arrived: int
    """Counter."""
    served: int
    """Counter."""


class Body:
    """Watches this machine. `start` and `close` from anywhere, `metrics` too; the rest in the controller's thread."""

    def __init__(
        self,
        config: TelemetryConfigSection,
        world: ServingWorld,
        devices: Sequence[DeviceView],
        *,
        slo_wait_s: float,
        see: Callable[[tuple[DeviceView, ...]], None] = lambda _devices: None,
        tell: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """`devices`: what replicas run on, as nothing is known against it; `see` hears of them when telemetry shows them
        otherwise, `tell` of what happens to devices."""
        self._telemetry = Telemetry(
            node=_node(world), period_s=config.period_s, budget=config.budget, gpus=not world.simulated
        )
        self._forecaster = Forecaster(slo_wait_s=slo_wait_s)
        self._nominal = tuple(devices)
        self._shown = tuple(devices)
        self._see, self._tell = see, tell
        self._lost: set[str] = set()
        self._heard = 0
        self._counted: Counter[tuple[str, str]] = Counter()
        self._due_s = self._since_s = self._telemetry.clock()
        self.outlook: Outlook | None = None
        """As of the last look."""

    def start(self) -> None:
        """Begin to sample."""
        self._telemetry.start()

    def close(self) -> None:
        """Stop sampling; idempotent."""
        self._telemetry.close()

    # -- in the controller's thread ----------------------------------------------------------------------

    def look(self, load: Callable[[], Load]) -> None:
        """Once a second: learn, forecast, and tell what has happened."""
        now_s = self._telemetry.clock()
        if now_s < self._due_s:
            return
        self._due_s = now_s + _LOOK_S
        self._hear()
        readings = list(self._readings(load()))
        if readings:
            self.outlook = self._forecaster.observe(readings)
        shown = tuple(self._view(device) for device in self._nominal)
        if shown != self._shown:
            self._shown = shown
            self._see(shown)

    def ahead(self) -> tuple[tuple[str, float], ...]:
        """Signals of what is expected, for perception; each in [-1, 0]."""
        return self.outlook.signals if self.outlook is not None else ()

    def window(self, origin_s: float) -> TelemetryWindow:
        """What was seen since the last call, and what is expected of it, on the run's clock (`origin_s`: the
        monotonic clock's time of its 0)."""
        began_s, self._since_s = self._since_s, self._telemetry.clock()
        window = self._telemetry.window(began_s, self._since_s)
        return replace(
            window,
            began_s=round(window.began_s - origin_s, 3),
            ended_s=round(window.ended_s - origin_s, 3),
            devices=tuple(
                replace(device, figures=tuple((name, _short(spread)) for name, spread in device.figures))
                for device in window.devices
            ),
            events=tuple(replace(event, at_s=round(event.at_s - origin_s, 3)) for event in window.events),
        )

    def forecasts(self) -> tuple[Forecast, ...]:
        """Of half a minute ahead."""
        found = self.outlook.forecasts if self.outlook is not None else ()
        return tuple(f for f in found if f.horizon_s == AHEAD_S)

    # -- for whoever looks on ----------------------------------------------------------------------------

    def in_words(self) -> str:
        """The machine now, in a line; empty before the first sample."""
        host = self._telemetry.host()
        parts = [host_in_words(host)] if host is not None else []
        parts += [gpu_in_words(sample) for sample in self._telemetry.samples()]
        parts += [f"{device} lost" for device in sorted(self._lost)]
        return "; ".join(part for part in parts if part)

    def metrics(self) -> Iterator[Metric]:
        """Series of devices; a figure that is not told has none."""
        host, gpus = self._telemetry.host(), self._telemetry.samples()
        yield from _device_series(host, gpus)
        for view in self._shown:
            place = (("device", view.id),)
            yield Metric(
                "autopoiesis_device_available", "gauge", "Replicas may run on it.", view.available, place
            )
        for (device, kind), count in list(self._counted.items()):
            labels = (("device", device), ("kind", kind))
            yield Metric(
                "autopoiesis_device_events_total", "counter", "What happened to devices.", count, labels
            )
        for forecast in self.forecasts():
            labels = (("device", forecast.unit), ("quantity", forecast.quantity))
            yield Metric("autopoiesis_device_forecast", "gauge", "Expected in 30 s.", forecast.value, labels)
        share = self._telemetry.cpu_share
        yield Metric(
            "autopoiesis_telemetry_cpu_ratio", "gauge", "Share of a core that sampling takes.", share
        )

    # -- details -----------------------------------------------------------------------------------------

    def _hear(self) -> None:
        for logged in self._telemetry.events(self._heard):
            self._heard = logged.number
            event = logged.event
            self._counted[event.device, event.kind.value] += 1
            if event.kind in _GONE:
                (self._lost.add if _GONE[event.kind] else self._lost.discard)(event.device)
            if event.kind not in _QUIET:
                self._tell(event_in_words(event))

    def _readings(self, load: Load) -> Iterator[UnitReading]:
        host = self._telemetry.host()
        if host is not None:
            yield replace(
                of_host(host),
                queue=float(load.waiting),
                arrived=float(load.arrived),
                served=float(load.served),
            )
        known = self._identities()
        for sample in self._telemetry.samples():
            yield of_gpu(sample, known.get(sample.device))

    def _view(self, device: DeviceView) -> DeviceView:
        """A device as telemetry shows it; one that it has never seen stays as it was."""
        if device.id in self._lost:
            return replace(device, available=False)
        sample = next((s for s in self._telemetry.samples() if s.device == device.id), None)
        identity = self._identities().get(device.id)
        if sample is None or identity is None or not sample.throttle:
            return device
        clock, most = sample.sm_clock_mhz, identity.max_sm_clock_mhz
        if clock is None or not most:
            return device
        return replace(device, speed=max(_LEAST_SPEED, min(1.0, round(clock / most, 2))))

    def _identities(self) -> dict[str, GpuIdentity]:
        return {identity.id: identity for identity in self._telemetry.identities}


def host_in_words(host: HostSample) -> str:
    """The machine itself; only what it tells."""
    parts = []
    if host.utilisation is not None:
        parts.append(f"CPU {host.utilisation:.0%}")
    if host.memory_used_bytes is not None and host.memory_total_bytes:
        parts.append(f"memory {host.memory_used_bytes / 1e9:.1f} of {host.memory_total_bytes / 1e9:.1f} GB")
    pressed = [
        f"{name} {share:.0%}"
        for name, share in (
            ("CPU", host.cpu_pressure),
            ("memory", host.memory_pressure),
            ("I/O", host.io_pressure),
        )
        if share is not None
    ]
    if pressed:
        parts.append(f"pressure {' '.join(pressed)}")
    if host.temperature_c is not None:
        parts.append(f"{host.temperature_c:.0f} C")
    return ", ".join(parts)


def gpu_in_words(gpu: GpuSample) -> str:
    """A GPU; only what it tells."""
    parts = [gpu.device.rpartition("/")[2]]
    if gpu.utilisation is not None:
        parts.append(f"{gpu.utilisation:.0%}")
    if gpu.memory_used_bytes is not None:
        parts.append(f"{gpu.memory_used_bytes / 1e9:.1f} GB")
    if gpu.temperature_c is not None:
        parts.append(f"{gpu.temperature_c:.0f} C")
    if gpu.throttle:
        parts.append(f"throttled ({', '.join(gpu.throttle)})")
    return " ".join(parts)


def event_in_words(event: TelemetryEvent) -> str:
    """What happened to which device."""
    what = f"{event.device or 'telemetry'}: {event.kind.value}"
    return f"{what}: {event.detail}" if event.detail else what


def _device_series(host: HostSample | None, gpus: Iterable[GpuSample]) -> Iterator[Metric]:
    samples: list[HostSample | GpuSample] = [*([host] if host is not None else []), *gpus]
    for name, text, field, scale in (
        ("utilisation_ratio", "Share of the time that it was busy.", "utilisation", 1.0),
        ("memory_used_bytes", "Memory in use.", "memory_used_bytes", 1.0),
        ("memory_total_bytes", "Memory.", "memory_total_bytes", 1.0),
        ("temperature_celsius", "Temperature.", "temperature_c", 1.0),
        ("power_watts", "Power draw.", "power_w", 1.0),
        ("sm_clock_hertz", "Clock of the multiprocessors.", "sm_clock_mhz", 1e6),
        ("throttled", "Clocks are held down now.", "throttle", 1.0),
        ("run_queue", "Tasks that run or wait for a CPU.", "run_queue", 1.0),
    ):
        for sample in samples:
            value = getattr(sample, field, None)
            if value is not None:
                told = float(bool(value)) if field == "throttle" else float(value) * scale
                yield Metric(f"autopoiesis_device_{name}", "gauge", text, told, (("device", sample.device),))
    for resource in ("cpu", "memory", "io"):
        share = getattr(host, f"{resource}_pressure", None)
        if host is not None and share is not None:
            labels = (("device", host.device), ("resource", resource))
            text = "Share of the time in which some task waited for it."
            yield Metric("autopoiesis_device_pressure_ratio", "gauge", text, share, labels)


def _node(world: ServingWorld) -> str:
    """What telemetry calls this machine: as the cluster does where that says which GPU is which."""
    nodes = {device.node for device in world.world.topology.devices.values()}
    return nodes.pop() if len(nodes) == 1 and not world.on_cpu and not world.simulated else _NODE


def _short(spread: Spread) -> Spread:
    values = (spread.mean, spread.minimum, spread.p50, spread.p90, spread.p99, spread.maximum)
    return Spread(spread.count, *(float(f"{value:.{_DIGITS}g}") for value in values))
