"""Integrals over virtual time: stalls, idleness with work pending, and what the replicas have used."""

from __future__ import annotations

from loop.contracts import Resources


class Meter:
    """Piecewise constant counts, integrated whenever one of them is about to change (`touch` first)."""

    __slots__ = (
        "_last_s",
        "busy",
        "device_s",
        "idle_pending_s",
        "joules",
        "pending",
        "planned_devices",
        "stall_s",
        "stalled_devices",
        "usd",
    )

    def __init__(self) -> None:
        self._last_s = 0.0
        self.pending = 0
        """Requests that have arrived and not ended."""
        self.busy = 0
        """Engines that iterate, and KV transfers under way."""
        self.planned_devices = 0
        self.stalled_devices = 0
        """Devices of the plan whose replica waits for them or loads."""
        self.stall_s = 0.0
        self.idle_pending_s = 0.0
        # Of the replicas that are gone.
        self.device_s = 0.0
        self.joules = 0.0
        self.usd = 0.0

    def touch(self, now_s: float) -> None:
        """Integrate up to now."""
        if self.pending:
            elapsed_s = now_s - self._last_s
            if self.stalled_devices:
                self.stall_s += elapsed_s * self.stalled_devices / self.planned_devices
            elif not self.busy:
                self.idle_pending_s += elapsed_s
        self._last_s = now_s

    def spend(self, used: Resources) -> None:
        """A replica has stopped, having used this much."""
        self.device_s += used.device_s
        self.joules += used.joules
        self.usd += used.usd
