"""Windows: what a stretch of samples showed, as quantiles, small enough to be journaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loop.contracts.telemetry import DeviceWindow, EventKind, Spread, TelemetryEvent, TelemetryWindow
from physical.telemetry.nvml import throttle_reasons
from physical.telemetry.store import Ring

_NO_FIGURES = {"throttle", "mig"}
_DIGITS = 9
"""Significant digits kept: nothing is measured better, and windows stay small as text."""


def summarise(
    rings: Sequence[tuple[str, Ring]],
    events: tuple[TelemetryEvent, ...],
    began_s: float,
    ended_s: float,
    period_s: float,
) -> TelemetryWindow:
    """The window of these rings' samples with began_s < time <= ended_s; devices without a sample are left out."""
    devices = []
    for device, ring in rings:
        _, rows = ring.between(began_s, ended_s)
        if len(rows):
            devices.append(_device(device, ring.columns, rows))
    return TelemetryWindow(began_s, ended_s, period_s, tuple(devices), events)


def as_dict(window: TelemetryWindow) -> dict[str, Any]:
    """Plain values for JSON; `from_dict` makes the same window of them."""
    plain = asdict(window)
    for device in plain["devices"]:
        device["figures"] = {
            name: {key: _short(value) for key, value in spread.items()} for name, spread in device["figures"]
        }
        device["throttle_reasons"] = list(device["throttle_reasons"])
    return plain


def from_dict(plain: Mapping[str, Any]) -> TelemetryWindow:
    """A window as it was journaled.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    devices = tuple(
        DeviceWindow(
            device=entry["device"],
            samples=int(entry["samples"]),
            figures=tuple((name, Spread(**spread)) for name, spread in entry["figures"].items()),
            throttled_share=float(entry["throttled_share"]),
            throttle_reasons=tuple(entry["throttle_reasons"]),
        )
        for entry in plain["devices"]
    )
    events = tuple(TelemetryEvent(**{**entry, "kind": EventKind(entry["kind"])}) for entry in plain["events"])
    return TelemetryWindow(plain["began_s"], plain["ended_s"], plain["period_s"], devices, events)


def _device(device: str, columns: tuple[str, ...], rows: NDArray[np.float64]) -> DeviceWindow:
    figures = []
    for index, name in enumerate(columns):
        if name in _NO_FIGURES:
            continue
        told = rows[:, index]
        told = told[~np.isnan(told)]
        if told.size:
            figures.append((name, _spread(told)))
    reasons: tuple[str, ...] = ()
    throttled = 0.0
    if "throttle" in columns:
        masks = rows[:, columns.index("throttle")]
        masks = masks[~np.isnan(masks)].astype(np.int64)
        named = [throttle_reasons(int(mask)) for mask in np.unique(masks)]
        reasons = tuple(dict.fromkeys(reason for names in named for reason in names))
        holding = [int(mask) for mask, names in zip(np.unique(masks), named, strict=True) if names]
        throttled = float(np.isin(masks, holding).mean()) if masks.size else 0.0
    return DeviceWindow(device, len(rows), tuple(figures), throttled, reasons)


def _spread(values: NDArray[np.float64]) -> Spread:
    ordered = np.sort(values)
    p50, p90, p99 = (_quantile(ordered, q) for q in (0.5, 0.9, 0.99))
    return Spread(len(ordered), float(values.mean()), float(ordered[0]), p50, p90, p99, float(ordered[-1]))


def _quantile(ordered: NDArray[np.float64], q: float) -> float:
    """Linear between order statistics (Hyndman and Fan's type 7)."""
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (position - low) * (ordered[high] - ordered[low]))


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{_DIGITS}g}")
