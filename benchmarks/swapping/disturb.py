"""What happens while the requests run: policy swaps, reconfigurations, and replicas killed with SIGKILL."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.swapping.wardrobe import Wardrobe
from execution.replicas.dispatcher import Dispatcher
from execution.replicas.manager import ReplicaManager
from execution.replicas.replica import Replica
from loop.contracts import Memo, Plan, ReplicaSpec

_LATEST = 0.92
"""Share of the requests after which nothing more happens."""
_VICTIM_WAIT_S = 60.0


class Act(NamedTuple):
    """One disturbance."""

    after: int
    """Finished requests."""
    kind: str
    number: int


def schedule(requests: int, swaps: int, plans: int, kills: int) -> list[Act]:
    """All of them, each kind evenly spread, in order."""
    last = requests * _LATEST
    found = [
        Act(int(last * (number + offset) / count), kind, number)
        for kind, count, offset in (("swap", swaps, 0.5), ("plan", plans, 0.35), ("kill", kills, 0.75))
        for number in range(count)
    ]
    return sorted(found)


def plans_on(model: str, devices: Sequence[str], seqs: int) -> list[Plan]:
    """Layouts to change between: other devices, more of them, other limits, fewer, and the first one again."""

    def layout(names: Sequence[str], limit: int) -> Plan:
        return Plan(tuple(ReplicaSpec(model, (name,), max_num_seqs=limit) for name in names))

    half = max(2, len(devices) * 2 // 3)
    return [
        layout(devices[:half], seqs),
        layout(devices[-half:], seqs),
        layout(devices, seqs),
        layout(devices, max(1, seqs // 2)),
        layout(devices[: max(1, half - 1)], seqs),
        layout(devices[:half], seqs),
    ]


@dataclass
class Disturber:
    """Carries the schedule out as requests finish (tell `finished`); what comes too late is left undone, and shows."""

    requests: int
    """In all."""
    manager: ReplicaManager
    dispatcher: Dispatcher
    wardrobe: Wardrobe
    layouts: Sequence[Plan]
    acts: Sequence[Act]
    done: dict[str, int] = field(default_factory=lambda: {"swap": 0, "plan": 0, "kill": 0})
    swapped_s: list[float] = field(default_factory=list)
    """When, on the monotonic clock."""
    faults: int = 0
    """Decisions that sandboxed policies did not give."""
    _finished: int = 0
    _progress: asyncio.Event = field(default_factory=asyncio.Event)
    _killed: list[int] = field(default_factory=list)

    def finished(self) -> None:
        """One more request is over."""
        self._finished += 1
        self._progress.set()

    async def run(self) -> None:
        """All acts, each in its time."""
        for act in self.acts:
            if self._finished >= self.requests:
                break  # a machine so busy that loading a policy took as long as the rest: too late to disturb
            while self._finished < act.after:
                self._progress.clear()
                await self._progress.wait()
            if act.kind == "swap":
                await self._swap()
            elif act.kind == "plan":
                await self.manager.apply(self.layouts[(act.number + 1) % len(self.layouts)])
            else:
                await self._kill()
                continue
            self.done[act.kind] += 1
        self.faults += self.dispatcher.desk.faults.total + _faults(self.dispatcher)

    async def _swap(self) -> None:
        policy = await self.wardrobe.next()
        self.faults += _faults(self.dispatcher)
        await self.dispatcher.adopt(policy, Memo())
        self.swapped_s.append(time.monotonic())
        while (
            not self._decided() and self._finished < self.requests
        ):  # a swap is over when the new policy has decided
            await asyncio.sleep(0.001)
        await self.wardrobe.discard_old()

    def _decided(self) -> bool:
        return len(self.dispatcher.desk.swap_pauses_s) >= self.dispatcher.desk.swaps

    async def _kill(self) -> None:
        """SIGKILL to the busiest replica, of those on devices that were spared so far."""
        async with asyncio.timeout(_VICTIM_WAIT_S):
            while not (busy := [r for r in self.manager.present() if r.ready and r.load.started and r.pid]):
                if self._finished >= self.requests:
                    return
                await asyncio.sleep(0.005)
        victim = min(busy, key=lambda r: (self._killed.count(_device(r)), -r.load.in_flight))
        self._killed.append(_device(victim))
        if victim.pid is not None:
            os.kill(victim.pid, signal.SIGKILL)
            self.done["kill"] += 1


def _device(replica: Replica) -> int:
    return int(replica.spec.devices[0].rpartition("d")[2])


def _faults(dispatcher: Dispatcher) -> int:
    faults = getattr(dispatcher.desk.policy, "faults", None)
    return faults.total if faults is not None else 0
