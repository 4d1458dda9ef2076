"""What was sampled, kept in memory of fixed size: a ring for each device, and a log of events.

One thread writes a device's ring, any may read: readers copy under a lock that writers hold for a row.
"""

from __future__ import annotations

import math
import struct
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loop.contracts.telemetry import EventKind, GpuProcess, GpuSample, HostSample, TelemetryEvent
from physical.telemetry.nvml import throttle_reasons

NAN = math.nan
GPU_COLUMNS = (
    "utilisation",
    "memory_utilisation",
    "memory_used_bytes",
    "memory_total_bytes",
    "power_w",
    "power_limit_w",
    "temperature_c",
    "memory_temperature_c",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "throttle",
    "thermal_violation_s",
    "power_violation_s",
    "energy_joules",
    "ecc_corrected",
    "ecc_uncorrected",
    "pcie_tx_bytes_per_s",
    "pcie_rx_bytes_per_s",
    "pcie_replays",
    "nvlink_tx_bytes_per_s",
    "nvlink_rx_bytes_per_s",
    "mig",
)
"""A row of a GPU's ring; `throttle` is the bit mask, `mig` 0 or 1. NaN: not told."""
HOST_COLUMNS = (
    "utilisation",
    "busiest_core",
    "run_queue",
    "memory_used_bytes",
    "memory_total_bytes",
    "cpu_pressure",
    "memory_pressure",
    "io_pressure",
    "power_w",
    "temperature_c",
    "frequency_mhz",
)
_EVENTS_KEPT = 4096


class Ring:
    """The last rows of one device; memory is taken once."""

    def __init__(self, columns: Sequence[str], capacity: int) -> None:
        self.columns = tuple(columns)
        self.capacity = capacity
        # Rows are packed into plain memory (a sixth of the time of assigning to an array) and read as an array.
        self._pack = struct.Struct(f"{1 + len(self.columns)}d").pack_into
        self._width = 8 * (1 + len(self.columns))
        self._memory = bytearray(self._width * capacity)
        self._table = np.frombuffer(self._memory, dtype=np.float64).reshape(capacity, -1)
        self._written = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return min(self._written, self.capacity)

    def append(self, at_s: float, row: Sequence[float]) -> None:
        """Write one row, over the oldest when full."""
        offset = self._width * (self._written % self.capacity)
        with self._lock:
            self._pack(self._memory, offset, at_s, *row)
            self._written += 1

    def last(self) -> tuple[float, list[float]] | None:
        """The newest row; None of nothing."""
        with self._lock:
            if not self._written:
                return None
            slot = (self._written - 1) % self.capacity
            at_s, *row = self._table[slot].tolist()
        return at_s, row

    def between(
        self, began_s: float = -math.inf, ended_s: float = math.inf
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(times, rows) with began_s < time <= ended_s, oldest first; copies of shape (n,), (n, columns)."""
        with self._lock:
            size = min(self._written, self.capacity)
            first = self._written - size
            order = np.arange(first, self._written) % self.capacity
            table = self._table[order]
        times, rows = table[:, 0], table[:, 1:]
        low = int(np.searchsorted(times, began_s, side="right"))
        high = int(np.searchsorted(times, ended_s, side="right"))
        return times[low:high], rows[low:high]

    def column(self, name: str, began_s: float = -math.inf) -> NDArray[np.float64]:
        """One figure over time, oldest first; NaN where it was not told."""
        _, rows = self.between(began_s)
        return rows[:, self.columns.index(name)]


@dataclass(frozen=True, slots=True)
class Logged:
    """An event and its number."""

    number: int
    event: TelemetryEvent


class EventLog:
    """The last events, numbered from 1."""

    def __init__(self) -> None:
        self._events: deque[Logged] = deque(maxlen=_EVENTS_KEPT)
        self._count = 0
        self._lock = threading.Lock()

    def add(
        self, kind: EventKind, device: str, at_s: float, detail: str = "", value: float = 0.0
    ) -> TelemetryEvent:
        """Note that something happened."""
        event = TelemetryEvent(kind, device, at_s, detail, value)
        with self._lock:
            self._count += 1
            self._events.append(Logged(self._count, event))
        return event

    @property
    def count(self) -> int:
        """The number of the newest event."""
        return self._count

    def since(self, number: int = 0) -> list[Logged]:
        """Events with a higher number, oldest first."""
        with self._lock:
            return [entry for entry in self._events if entry.number > number]

    def between(self, began_s: float, ended_s: float) -> tuple[TelemetryEvent, ...]:
        """Events with began_s < time <= ended_s."""
        with self._lock:
            events = [entry.event for entry in self._events]
        return tuple(event for event in events if began_s < event.at_s <= ended_s)


def gpu_sample(
    device: str, at_s: float, row: Sequence[float], processes: tuple[GpuProcess, ...] = ()
) -> GpuSample:
    """A ring's row as people and forecasts read it."""
    told = dict(zip(GPU_COLUMNS, map(_told, row), strict=True))
    mask, mig = told.pop("throttle"), told.pop("mig")
    return GpuSample(
        device=device,
        at_s=at_s,
        throttle=throttle_reasons(int(mask)) if mask is not None else (),
        mig=None if mig is None else bool(mig),
        processes=processes,
        **told,
    )


def host_sample(device: str, at_s: float, row: Sequence[float]) -> HostSample:
    """A ring's row of the machine itself."""
    return HostSample(device, at_s, **dict(zip(HOST_COLUMNS, map(_told, row), strict=True)))


def _told(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
