"""What happens to live replicas, as values for the journal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class ReplicaEventKind(StrEnum):
    """A step in the life of a replica."""

    STARTED = "started"  # its process is being brought up
    READY = "ready"
    RESIZED = "resized"  # other batch limits
    DRAINING = "draining"  # takes nothing more
    STOPPED = "stopped"
    DIED = "died"  # it was gone, or had to be killed
    FAILED = "failed"  # it did not start
    RESTART = "restart"  # another process will take its place, after the pause that the reason names
    GAVE_UP = "gave-up"  # too many deaths: no more restarts under this plan
    KEPT = "kept"  # was to go, and stays: its successors did not come up


@dataclass(frozen=True, slots=True)
class ReplicaEvent:
    """One step of one replica."""

    at_s: float
    """On the manager's clock (`time.monotonic`)."""
    kind: ReplicaEventKind
    replica: int
    """-1: no process stands for it now."""
    model: str
    devices: tuple[str, ...]
    reason: str = ""
    """In words."""
    pid: int | None = None


EventSink = Callable[[ReplicaEvent], None]
