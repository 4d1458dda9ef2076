"""One GPU under watch: its handle, what is asked of it, the row of its latest figures, and the events that they make."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from loop.contracts.telemetry import EventKind, GpuIdentity, GpuProcess
from physical.telemetry.nvml import Prepared, throttle_reasons
from physical.telemetry.readings import FAST, FIELDS, MEDIUM, RARE, STAND_INS, Field, Reading, columns
from physical.telemetry.store import GPU_COLUMNS, NAN, EventLog, Ring

THROTTLING_ENDS_AFTER_S: Final = 1.0
"""A power cap comes and goes ten times a second: it has ended when it was away for so long."""
_SLOWEST_STRIDE = 20
(_THROTTLE,), (_MIG,) = columns("throttle"), columns("mig")
_ECC: Final = {
    columns("ecc_corrected")[0]: EventKind.ECC_CORRECTED,
    columns("ecc_uncorrected")[0]: EventKind.ECC_UNCORRECTED,
}


class Round:
    """Calls that are asked together, at most every `every_s`."""

    __slots__ = ("apart_s", "due_s", "every_s", "prepared", "readings")

    def __init__(
        self, readings: Iterable[Reading] = (), every_s: float = 0.0, due_s: float = 0.0, apart_s: float = 0.0
    ) -> None:
        self.readings = list(readings)
        self.every_s = every_s
        self.due_s = due_s
        self.apart_s = apart_s
        """The second look is so much later: devices take turns."""
        self.prepared: list[tuple[Reading, Prepared | None, tuple[str, str]]] | None = None
        """With what each call is `doing` for who watches; None: to be made."""

    def due(self, now_s: float, slack_s: float) -> bool:
        """Is it time? Then the next time is set."""
        if now_s < self.due_s:
            return False
        self.due_s = now_s + self.every_s - slack_s + self.apart_s
        self.apart_s = 0.0
        return True


@dataclass(slots=True)
class Gpu:
    """One device, here or lost."""

    identity: GpuIdentity
    ring: Ring
    events: EventLog
    handle: Any = None
    here: bool = False
    hung: bool = False
    """A call about it does not come back: it is left alone."""
    row: list[float] = field(default_factory=list)
    fast: Round = field(default_factory=Round)
    medium: Round = field(default_factory=Round)
    slow: Round = field(default_factory=Round)
    rare: Round = field(default_factory=Round)
    fields: list[Field] = field(default_factory=list)
    counters: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Column -> (time, count) of the last look."""
    failing: set[str] = field(default_factory=set)
    """Calls that fail at the moment."""
    processes: tuple[GpuProcess, ...] = ()
    skip: int = 0
    """Ticks to leave out, since its calls are slow."""
    _stride: int = 1
    _took_s: float = 0.0
    _reasons: tuple[str, ...] = ()
    _throttled_s: float = 0.0

    @property
    def id(self) -> str:
        """As in the topology."""
        return self.identity.id

    def begin(self, handle: Any, now_s: float, rounds_s: tuple[float, float, float], apart_s: float) -> None:
        """It answers: nothing is known of it yet, and everything is asked. `apart_s` sets its slower rounds apart from
        those of the other devices.
        """
        self.handle, self.here = handle, True
        self.row = [NAN] * len(GPU_COLUMNS)
        medium_s, slow_s, rare_s = rounds_s
        self.fast = Round(FAST, 0.0, now_s)
        self.medium = Round(MEDIUM, medium_s, now_s, apart_s)
        self.slow = Round((), slow_s, now_s, apart_s)
        self.rare = Round(RARE, rare_s, now_s, apart_s)
        self.fields = list(FIELDS)
        self.counters, self.failing = {}, set()
        self.skip, self._stride, self._took_s = 0, 1, 0.0

    def lose(self, text: str, now_s: float) -> None:
        """It answers no more."""
        if self.here:
            self.here = False
            self._reasons, self.processes = (), ()
            self.events.add(EventKind.LOST, self.id, now_s, text)

    def take(self, reading: Reading, answer: Any, now_s: float) -> None:
        """An answer into the row, and the events of what it says."""
        for column, value in zip(reading.columns, reading.figures(answer), strict=True):
            self.put(column, value, now_s)

    def put(self, column: int, value: float, now_s: float) -> None:
        """One figure into the row; counted errors and a changed MIG mode are events."""
        old = self.row[column]
        self.row[column] = value
        if column in _ECC and value > old:
            self.events.add(_ECC[column], self.id, now_s, f"{value:.0f} in all", value - old)
        elif column == _MIG and abs(value - old) == 1.0:
            self.events.add(EventKind.MIG_CHANGED, self.id, now_s, "on" if value else "off", value)

    def forget(self, reading: Reading) -> None:
        """What a call that failed would have told."""
        for column in reading.columns:
            self.row[column] = NAN

    def rate(self, column: int, count: float, now_s: float) -> float:
        """Growth of a counter per second; NaN at the first look, and after it began anew."""
        then, before = self.counters.get(column, (now_s, count))
        self.counters[column] = (now_s, count)
        return (count - before) / (now_s - then) if now_s > then and count >= before else NAN

    def drop_field(self, entry: Field) -> None:
        """The batched call does not tell it: ask for it alone, where that can be done."""
        self.fields.remove(entry)
        self.row[entry.column] = NAN
        for reading, rarely in STAND_INS:
            if reading.columns == (entry.column,):
                (self.rare if rarely else self.slow).readings.append(reading)

    def finish(self, now_s: float, took_s: float, period_s: float) -> None:
        """The tick is complete: keep the row, tell what throttles, set the pace."""
        self.ring.append(now_s, self.row)
        mask = self.row[_THROTTLE]
        if mask or self._reasons:
            self._tell_throttling(mask, now_s)
        # Smoothed: one tick that the machine delayed does not count.
        self._took_s += 0.2 * (took_s - self._took_s)
        self.skip = 0
        if self._took_s > 0.75 * period_s or self._stride > 1:
            stride = min(_SLOWEST_STRIDE, max(1, round(self._took_s / (0.5 * period_s))))
            if stride > 1 and self._stride == 1:
                text = f"its calls take {1e3 * self._took_s:.0f} ms"
                self.events.add(EventKind.SLOW, self.id, now_s, text, self._took_s)
            self._stride = stride
            self.skip = stride - 1

    def _tell_throttling(self, mask: float, now_s: float) -> None:
        """When other reasons than before hold the clocks down; when none did for a while."""
        reasons = () if math.isnan(mask) else throttle_reasons(int(mask))
        if reasons:
            self._throttled_s = now_s
            if not set(reasons) <= set(self._reasons):
                self._reasons = reasons
                self.events.add(EventKind.THROTTLING, self.id, now_s, ", ".join(reasons), mask)
        elif self._reasons and now_s - self._throttled_s >= THROTTLING_ENDS_AFTER_S:
            self.events.add(EventKind.THROTTLING_ENDED, self.id, now_s, ", ".join(self._reasons))
            self._reasons = ()
