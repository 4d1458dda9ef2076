"""Who holds which device, what that has cost so far, and how long starts took."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable

from execution.replicas.replica import Replica
from loop.contracts import DeviceView, ReplicaSpec, Resources

_START_WEIGHT = 0.3
"""Of the newest start in the running mean of start times."""


class Ledger:
    """Devices and their holders; with `exclusive`, a device has one at a time."""

    def __init__(
        self,
        devices: Iterable[DeviceView],
        clock: Callable[[], float],
        *,
        exclusive: bool,
        start_estimate_s: float,
    ) -> None:
        self.devices = {device.id: device for device in devices}
        """As they were last told."""
        self.replicas: dict[int, Replica] = {}
        """Those that hold devices, by id, in order of creation."""
        self._clock = clock
        self._exclusive = exclusive
        self._start_estimate_s = start_estimate_s
        self._holders: dict[str, Hashable] = {}
        self._freed = asyncio.Event()
        self._start_s: dict[str, float] = {}
        self._device_s = self._usd = 0.0

    async def claim(self, holder: Hashable, names: tuple[str, ...]) -> None:
        """Wait until no other one holds these devices, and take them."""
        while any(self._holders.get(name, holder) != holder for name in names):
            await self._freed.wait()
        if self._exclusive:
            self._holders.update(dict.fromkeys(names, holder))

    def release(self, holder: Hashable) -> None:
        """All that it holds is for others."""
        self._holders = {name: other for name, other in self._holders.items() if other != holder}
        freed, self._freed = self._freed, asyncio.Event()
        freed.set()

    def holders(self, names: Iterable[str]) -> set[Hashable]:
        """Who holds some of these."""
        return {self._holders[name] for name in names if name in self._holders}

    def views(self, spec: ReplicaSpec) -> tuple[DeviceView, ...]:
        """A replica's devices."""
        return tuple(self.devices[name] for name in spec.devices if name in self.devices)

    def opened(self, replica: Replica) -> None:
        """It holds its devices from now on."""
        self.replicas[replica.id] = replica

    def shut(self, replica: Replica) -> None:
        """It holds them no more; idempotent."""
        if self.replicas.pop(replica.id, None) is not None:
            held_s = self._clock() - replica.started_s
            self._device_s += held_s * len(replica.spec.devices)
            self._usd += held_s * replica.usd_per_s

    def resources(self) -> Resources:
        """Spent so far. Joules are not measured here."""
        now_s, device_s, usd = self._clock(), self._device_s, self._usd
        for replica in self.replicas.values():
            held_s = now_s - replica.started_s
            device_s += held_s * len(replica.spec.devices)
            usd += held_s * replica.usd_per_s
        return Resources(device_s=device_s, usd=usd)

    def start_s(self, model: str) -> float:
        """Expected time of a start."""
        return self._start_s.get(model, self._start_estimate_s)

    def learn_start(self, model: str, took_s: float) -> None:
        """A start is over."""
        known_s = self._start_s.get(model, took_s)
        self._start_s[model] = known_s + _START_WEIGHT * (took_s - known_s)
