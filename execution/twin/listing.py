"""The replicas that a policy chooses from, with their views kept up to date as cheaply as may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loop.contracts import ReplicaView

if TYPE_CHECKING:
    from execution.twin.replica import Replica


class Listing:
    """Replicas of one model that take the same kind of work. Only views of replicas that changed are rebuilt."""

    __slots__ = ("_at_s", "_current", "_views", "_warming", "least_capacity", "replicas", "stale")

    def __init__(self) -> None:
        self.replicas: list[Replica] = []
        self.stale: list[Replica] = []
        """Replicas whose view is out of date."""
        self.least_capacity = 0
        """KV tokens that every replica here can hold."""
        self._views: list[ReplicaView] = []
        self._current: tuple[ReplicaView, ...] = ()
        self._warming: list[Replica] = []
        self._at_s = -1.0

    def fill(self, replicas: list[Replica], now_s: float) -> None:
        """These from now on."""
        for replica in self.replicas:
            replica.listing = None
        self.replicas = replicas
        self._views = []
        for position, replica in enumerate(replicas):
            replica.listing = self
            replica.position = position
            replica.dirty = False
            self._views.append(replica.view(now_s))
        self.stale = []
        self.least_capacity = min((r.engine.capacity_blocks << 4 for r in replicas), default=0)
        self._warming = [r for r in replicas if r.ready_in_s(now_s) > 0.0]
        self._at_s = now_s
        self._current = tuple(self._views)

    def views(self, now_s: float) -> tuple[ReplicaView, ...]:
        """One per replica, in the order of `replicas`. (Countdowns of loading replicas move with time.)"""
        if self._warming and now_s != self._at_s:
            self._at_s = now_s
            self._warming = [r for r in self._warming if r.ready_in_s(now_s) > 0.0]
            for replica in self._warming:
                replica.changed()
        stale = self.stale
        if stale:
            views = self._views
            for replica in stale:
                replica.dirty = False
                views[replica.position] = replica.view(now_s)
            stale.clear()
            self._current = tuple(views)
        return self._current
