"""The devices: available or not, how fast, leaving or not; and what cluster events do to them."""

from __future__ import annotations

from dataclasses import dataclass

from execution.twin.ports import DeviceLike, TopologyLike
from loop.contracts import ClusterEvent, DeviceView, EventKind


@dataclass(slots=True)
class DeviceState:
    """One device now."""

    device: DeviceLike
    available: bool = True
    speed: float = 1.0
    leaving_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What an event did: devices that went down, devices whose speed changed, reclaims to come."""

    down: tuple[str, ...] = ()
    speed: tuple[str, ...] = ()
    reclaims: tuple[tuple[float, str], ...] = ()
    """(time, device id)."""


class Fleet:
    """All devices of the topology."""

    __slots__ = ("_notice_scale", "_topology", "states")

    def __init__(self, topology: TopologyLike, notice_scale: float) -> None:
        self._topology = topology
        self._notice_scale = notice_scale
        self.states = {name: DeviceState(device) for name, device in topology.devices.items()}

    def targets(self, event: ClusterEvent) -> tuple[str, ...]:
        """Device ids that an event is about. Raises ValueError for an unknown target or a bad figure."""
        if event.kind is EventKind.SPEED and not event.factor > 0.0:
            raise ValueError(f"event on {event.target!r}: speed factor must be positive, not {event.factor}")
        if not event.notice_s >= 0.0:
            raise ValueError(f"event on {event.target!r}: notice must not be negative, not {event.notice_s}")
        if event.target in self.states:
            return (event.target,)
        if event.target in self._topology.nodes:
            return tuple(self._topology.nodes[event.target])
        raise ValueError(f"event on unknown device or node {event.target!r}")

    def happen(self, event: ClusterEvent, now_s: float) -> Change:
        """Carry an event out."""
        names = self.targets(event)
        states = [self.states[name] for name in names]
        if event.kind is EventKind.DOWN:
            return self._down(names)
        if event.kind is EventKind.UP:
            for state in states:
                state.available, state.speed, state.leaving_at_s = True, 1.0, None
            return Change(speed=names)
        if event.kind is EventKind.SPEED:
            for state in states:
                state.speed = event.factor
            return Change(speed=names)
        at_s = now_s + event.notice_s * self._notice_scale
        present = tuple(name for name, state in zip(names, states, strict=True) if state.available)
        for name in present:
            self.states[name].leaving_at_s = at_s
        return Change(reclaims=tuple((at_s, name) for name in present))

    def reclaim(self, name: str, now_s: float) -> Change:
        """The notice of a device is over (unless it was called off)."""
        return self._down((name,)) if self.states[name].leaving_at_s == now_s else Change()

    def _down(self, names: tuple[str, ...]) -> Change:
        lost = tuple(name for name in names if self.states[name].available)
        for name in names:
            self.states[name].available = False
            self.states[name].leaving_at_s = None
        return Change(down=lost)

    def speed(self, names: tuple[str, ...]) -> float:
        """Pace of a group: its slowest device's."""
        return min(self.states[name].speed for name in names)

    def views(self, now_s: float) -> tuple[DeviceView, ...]:
        """As telemetry shows them."""
        return tuple(
            DeviceView(
                id=name,
                kind=state.device.kind,
                node=state.device.node,
                available=state.available,
                speed=state.speed,
                leaving_in_s=None if state.leaving_at_s is None else max(state.leaving_at_s - now_s, 0.0),
                memory_bytes=state.device.profile.memory_bytes,
                usd_per_hour=state.device.profile.usd_per_hour,
                spot=state.device.spot,
            )
            for name, state in self.states.items()
        )
