"""KV on its way from prefill replicas to decode replicas."""

from __future__ import annotations

from heapq import heappush
from typing import TYPE_CHECKING

from execution.twin.ports import TopologyLike
from execution.twin.replica import Replica, State
from execution.twin.sequence import Sequence

if TYPE_CHECKING:
    from execution.twin.deployment import Deployment
    from execution.twin.engine import Agenda
    from execution.twin.gateway import Gateway
    from execution.twin.meter import Meter

FIRST_ORDER = 1_000_000_000
"""Transfers stand behind all replicas in the agenda's order of simultaneous events."""


class Transfer:
    """One sequence's KV in flight."""

    __slots__ = ("number", "office", "seq", "source", "target", "version")

    def __init__(
        self, number: int, seq: Sequence, source: Replica, target: Replica, office: TransferOffice
    ) -> None:
        self.number = number
        self.seq = seq
        self.source = source
        self.target = target
        self.office = office
        self.version = 0

    def fire(self, now_s: float) -> None:
        """All of it is there."""
        self.office.arrived(self, now_s)


class TransferOffice:
    """Sends KV over the topology. A sender's link carries one transfer at a time, first come first served;
    the sender keeps the blocks until the transfer is over."""

    __slots__ = (
        "_agenda",
        "_deployment",
        "_gateway",
        "_link_scale",
        "_meter",
        "_next",
        "_topology",
        "flying",
    )

    def __init__(
        self,
        *,
        topology: TopologyLike,
        gateway: Gateway,
        deployment: Deployment,
        meter: Meter,
        agenda: Agenda,
        link_scale: float,
    ) -> None:
        self._topology = topology
        self._gateway = gateway
        self._deployment = deployment
        self._meter = meter
        self._agenda = agenda
        self._link_scale = link_scale
        self._next = 0
        self.flying: dict[int, Transfer] = {}

    def send(self, seq: Sequence, source: Replica, now_s: float) -> bool:
        """Send a prefilled sequence to the decode replica that the policy chooses; False: none could hold
        it, so that it stays where it is."""
        target = self._gateway.choose_decode(seq, now_s)
        if target is None:
            return False
        a, b = source.spec.devices[0], target.spec.devices[0]
        size_bytes = seq.computed * source.costs.kv_bytes_per_token
        begins_s = max(now_s, source.link_free_s)
        sent_s = begins_s + size_bytes / (self._topology.bandwidth_bytes_per_s(a, b) * self._link_scale)
        source.link_free_s = sent_s
        transfer = Transfer(self._next, seq, source, target, self)
        self._next += 1
        self.flying[transfer.number] = transfer
        target.inbound += 1
        self._count_busy(1, now_s)
        arrives_s = sent_s + self._topology.latency_s(a, b)
        heappush(self._agenda, (arrives_s, FIRST_ORDER + transfer.number, transfer.version, transfer))
        return True

    def arrived(self, transfer: Transfer, now_s: float) -> None:
        """The sender's blocks are free, and the sequence queues for decoding."""
        seq, source, target = transfer.seq, transfer.source, transfer.target
        self._end(transfer, now_s)
        self._release(seq, source, now_s)
        seq.resident = True
        self._gateway.enqueue(seq, target, now_s)

    def after_loss(self, now_s: float) -> list[Sequence]:
        """Replicas have died. KV whose sender is gone is lost: those sequences are returned. KV whose receiver
        is gone is sent to another one, or stays where it is when there is none."""
        lost = []
        for transfer in list(self.flying.values()):
            seq, source = transfer.seq, transfer.source
            if source.state is State.GONE:
                self._end(transfer, now_s)
                lost.append(seq)
            elif transfer.target.state is State.GONE:
                self._end(transfer, now_s)
                if not self.send(seq, source, now_s):
                    # It is still there: the sender decodes it itself.
                    source.engine.release_sent(seq)
                    seq.resident = True
                    self._gateway.enqueue(seq, source, now_s)
        return lost

    def abandon(self, now_s: float) -> list[Sequence]:
        """End all transfers; the senders' blocks are for the caller to free. Returns what was on its way."""
        flying = list(self.flying.values())
        for transfer in flying:
            self._end(transfer, now_s)
        return [transfer.seq for transfer in flying]

    def _end(self, transfer: Transfer, now_s: float) -> None:
        transfer.version += 1
        del self.flying[transfer.number]
        transfer.target.inbound -= 1
        self._count_busy(-1, now_s)
        target = transfer.target
        if target.state is State.DRAINING and target.idle and transfer.source.state is State.GONE:
            self._deployment.drained(target, now_s)

    def _release(self, seq: Sequence, source: Replica, now_s: float) -> None:
        source.engine.release_sent(seq)
        source.changed()
        if source.state is State.DRAINING and source.idle:
            self._deployment.drained(source, now_s)
        elif source.engine.waiting:
            self._gateway.stir(source)

    def _count_busy(self, change: int, now_s: float) -> None:
        self._meter.touch(now_s)
        self._meter.busy += change
