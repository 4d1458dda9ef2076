"""The ports of the runtime: what computes, what holds values, and what both report.

Everything that happens elsewhere comes back as an `Event` in one queue, so that decisions are made in one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Order:
    """One task for one unit. Versions are indices of the graph's."""

    task: int
    function: str
    """`package.module:function`."""
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """A task is done."""

    unit: int
    task: int
    began_s: float
    ended_s: float
    """`time.perf_counter`, which all processes of a machine share."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A kernel raised."""

    unit: int
    task: int
    reason: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """A value was copied into a memory; `ok` is false where one end is gone."""

    version: int
    source: int
    target: int
    began_s: float
    ended_s: float
    ok: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """A unit is gone for good, and its memory with it."""

    unit: int
    reason: str


Event = Ended | Failed | Arrived | Lost
Report = Callable[[Event], None]


class Memory(Protocol):
    """Values of one memory node."""

    def put(self, version: int, value: Any) -> None:
        """Store a value from this process. Raises MemoryLostError."""

    def get(self, version: int) -> Any:
        """A value, copied to this process. Raises MemoryLostError."""

    def drop(self, version: int) -> None:
        """Nobody needs it any more."""


class RunningUnit(Protocol):
    """A unit at work."""

    def compute(self, order: Order) -> None:
        """Start; reports Ended, Failed or Lost. The unit is idle, and the inputs are in its memory."""

    def close(self) -> None:
        """End at once; nothing is reported any more."""


class MemoryLostError(RuntimeError):
    """The process or device that held a memory is gone."""
