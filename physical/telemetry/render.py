"""What `physical watch` shows: one table of devices, their forecasts, and the last events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loop.contracts.telemetry import EventKind, GpuSample, HostSample, Outlook, TelemetryEvent
from physical.telemetry.sampler import Telemetry

_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARK = 16
_HISTORY_S = 60.0
_ALARMING = {
    EventKind.LOST,
    EventKind.STALLED,
    EventKind.THROTTLING,
    EventKind.ECC_UNCORRECTED,
    EventKind.NO_DRIVER,
}
_GIB = 2**30


def screen(telemetry: Telemetry, outlook: Outlook | None, events: Sequence[TelemetryEvent]) -> RenderableType:
    """Everything, as it is now."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("device", style="bold", no_wrap=True)
    for heading in ("busy", "memory", "power", "clock", "temperature"):
        table.add_column(heading, no_wrap=True)
    table.add_column("in 30 s", no_wrap=True)
    table.add_column("throttling", style="yellow")
    for sample in telemetry.samples():
        table.add_row(*_gpu_cells(telemetry, sample, outlook))
    for identity in telemetry.identities:
        if not telemetry.here(identity.id):
            table.add_row(_short(identity.id), Text("does not answer", style="red"))
    host = telemetry.host()
    if host is not None:
        table.add_row(*_host_cells(telemetry, host, outlook))
    parts: list[RenderableType] = [table]
    if outlook is not None and any(value for _, value in outlook.signals):
        hurting = ", ".join(f"{name} {value:+.2f}" for name, value in outlook.signals if value)
        parts.append(Text(f"pain ahead: {hurting}", style="red"))
    now = telemetry.clock()
    for event in list(events)[-6:]:
        style = "red" if event.kind in _ALARMING else "dim"
        parts.append(Text(f"{now - event.at_s:6.1f} s ago  {describe(event)}", style=style))
    every = f"every {1e3 * telemetry.period_s:.0f} ms, {100 * telemetry.cpu_share:.2f} % of a core"
    parts.append(Text(every, style="dim"))
    return Group(*parts)


def as_json(
    telemetry: Telemetry, outlook: Outlook | None, events: Sequence[TelemetryEvent]
) -> dict[str, Any]:
    """The same for programs; what is not told is null."""
    host = telemetry.host()
    return {
        "at_s": telemetry.clock(),
        "devices": [
            asdict(sample) | {"name": identity.name, "uuid": identity.uuid, "here": True}
            for sample in telemetry.samples()
            for identity in telemetry.identities
            if identity.id == sample.device
        ],
        "missing": [entry.id for entry in telemetry.identities if not telemetry.here(entry.id)],
        "host": None if host is None else asdict(host),
        "forecasts": [] if outlook is None else [asdict(forecast) for forecast in outlook.forecasts],
        "throttling": [] if outlook is None else [asdict(entry) for entry in outlook.throttling],
        "signals": {} if outlook is None else dict(outlook.signals),
        "events": [asdict(event) for event in events],
        "period_s": telemetry.period_s,
        "cpu_share": telemetry.cpu_share,
    }


def describe(event: TelemetryEvent) -> str:
    """An event in one line."""
    who = _short(event.device) or "telemetry"
    return f"{who} {event.kind.value.replace('-', ' ')}" + (f": {event.detail}" if event.detail else "")


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """The last values as blocks between `low` and `high`; what was not told is a blank."""
    drawn = []
    for value in values:
        if math.isnan(value):
            drawn.append(" ")
            continue
        share = (value - low) / (high - low) if high > low else 0.0
        drawn.append(_BLOCKS[min(len(_BLOCKS) - 1, max(0, int(share * len(_BLOCKS))))])
    return "".join(drawn)


def _gpu_cells(telemetry: Telemetry, sample: GpuSample, outlook: Outlook | None) -> list[RenderableType]:
    temperature = _spark(telemetry, sample.device, "temperature_c", 30.0, 90.0)
    busy = _spark(telemetry, sample.device, "utilisation", 0.0, 1.0)
    limit = "" if sample.power_limit_w is None else f"/{sample.power_limit_w:.0f}"
    errors = f"  ECC {sample.ecc_uncorrected:.0f}" if sample.ecc_uncorrected else ""
    return [
        _short(sample.device),
        f"{_percent(sample.utilisation)} {busy}",
        _memory(sample.memory_used_bytes, sample.memory_total_bytes),
        f"{_whole(sample.power_w)}{limit} W",
        f"{_whole(sample.sm_clock_mhz)} MHz",
        f"{_whole(sample.temperature_c)} °C {temperature}",
        _ahead(sample.device, outlook),
        ", ".join(sample.throttle) + errors,
    ]


def _host_cells(telemetry: Telemetry, host: HostSample, outlook: Outlook | None) -> list[RenderableType]:
    busy = _spark(telemetry, host.device, "utilisation", 0.0, 1.0)
    pressed = "" if not host.cpu_pressure else f"{100 * host.cpu_pressure:.0f} % waits"
    return [
        _short(host.device),
        f"{_percent(host.utilisation)} {busy}",
        _memory(host.memory_used_bytes, host.memory_total_bytes),
        "" if host.power_w is None else f"{host.power_w:.0f} W",
        "" if host.frequency_mhz is None else f"{host.frequency_mhz:.0f} MHz",
        "" if host.temperature_c is None else f"{host.temperature_c:.0f} °C",
        _ahead(host.device, outlook),
        pressed,
    ]


def _ahead(device: str, outlook: Outlook | None) -> Text:
    """Temperature and memory in half a minute, and how long until heat throttles."""
    if outlook is None:
        return Text("")
    said = {f.quantity: f for f in outlook.forecasts if f.unit == device and f.horizon_s == 30.0}
    parts = []
    if "temperature_c" in said:
        forecast = said["temperature_c"]
        parts.append(f"{forecast.low:.0f}-{forecast.high:.0f} °C")
    if "queue" in said:
        parts.append(f"queue {said['queue'].value:.0f}")
    for entry in outlook.throttling:
        if entry.unit == device and entry.seconds is not None:
            return Text("  ".join([*parts, f"throttles in {entry.seconds:.0f} s"]), style="red")
    return Text("  ".join(parts))


def _spark(telemetry: Telemetry, device: str, name: str, low: float, high: float) -> str:
    """The last minute, in equal steps."""
    values = telemetry.ring(device).column(name, telemetry.clock() - _HISTORY_S)
    if not len(values):
        return ""
    step = max(1, math.ceil(len(values) / _SPARK))
    return sparkline([float(value) for value in values[::-step][::-1]], low, high)


def _memory(used: float | None, total: float | None) -> str:
    if used is None or not total:
        return "-"
    return f"{used / _GIB:.1f}/{total / _GIB:.0f} GiB"


def _percent(value: float | None) -> str:
    return "  - " if value is None else f"{100 * value:3.0f}%"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _short(device: str) -> str:
    """Without the node, when there is only this one."""
    return device.rpartition("/")[2]
