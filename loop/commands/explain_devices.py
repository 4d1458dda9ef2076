"""What the devices showed before a tick, what was expected of them, and what the gate did at it, in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from loop.contracts.telemetry import DeviceWindow, Forecast
from loop.journal import Decision
from loop.journal_serving import RUN_NAME, ServingJournal

_GATE = frozenset({"deployed", "refused", "dry-run"})


def devices_in_words(path: Path, tick: int) -> list[str]:
    """Lines on the devices of a live run before a tick; none of a replay, which has no real ones."""
    lines: list[str] = []
    with ServingJournal(path) as book:
        for entry in book.served_telemetry(tick=tick) if _live(book) else ():
            lines += [f"seen: {_device(device)}" for device in entry.seen.devices]
            lines += [
                f"happened: {event.device or 'telemetry'} {event.kind.value} at {event.at_s:,.1f} s"
                + (f": {event.detail}" if event.detail else "")
                for event in entry.seen.events
            ]
            if expected := ", ".join(_expected(entry.expected)):
                lines.append(f"expected: {expected}")
    return lines


def gate_in_words(path: Path, decision: Decision, until_s: float) -> list[str]:
    """What the gate of a live run did at a tick that lasts `until_s`."""
    now_s = decision.observation.now_s
    with ServingJournal(path) as book:
        return [
            f"gate: {event.kind}: {event.reason}"
            for event in (book.served_events() if _live(book) else ())
            if event.kind in _GATE and now_s <= event.at_s < until_s
        ]


def _live(book: ServingJournal) -> bool:
    """The last run is one of `loop serve`."""
    runs = book.runs()
    return bool(runs) and runs[-1][1] == RUN_NAME


def _device(window: DeviceWindow) -> str:
    """One device over one window; only what it tells."""
    of = dict(window.figures)
    parts = []
    if "utilisation" in of:
        parts.append(f"{of['utilisation'].mean:.0%} busy")
    if "memory_used_bytes" in of and "memory_total_bytes" in of:
        used, total = of["memory_used_bytes"].maximum / 1e9, of["memory_total_bytes"].maximum / 1e9
        parts.append(f"{used:.1f} of {total:.1f} GB")
    pressed = [
        f"{name} {of[key].mean:.0%}"
        for name, key in (("CPU", "cpu_pressure"), ("memory", "memory_pressure"), ("I/O", "io_pressure"))
        if key in of
    ]
    if pressed:
        parts.append(f"pressure {', '.join(pressed)}")
    if "power_w" in of:
        parts.append(f"{of['power_w'].mean:.0f} W")
    if "temperature_c" in of:
        parts.append(f"at most {of['temperature_c'].maximum:.0f} C")
    if window.throttled_share:
        parts.append(
            f"throttled {window.throttled_share:.0%} of the time ({', '.join(window.throttle_reasons)})"
        )
    return f"{window.device}: {', '.join(parts) or 'tells nothing'}"


def _expected(forecasts: tuple[Forecast, ...]) -> Iterator[str]:
    for f in forecasts:
        scale, unit = {"memory_bytes": (1e-9, " GB"), "temperature_c": (1.0, " C")}.get(f.quantity, (1.0, ""))
        name = {"memory_bytes": "memory", "temperature_c": "temperature"}.get(f.quantity, f.quantity)
        around = f" ({f.low * scale:.1f} to {f.high * scale:.1f})" if f.high > f.low else ""
        yield f"{f.unit} {name} {f.value * scale:.1f}{unit}{around} in {f.horizon_s:g} s"
