"""One process of one replica: its engine, what it holds, and the view that routers have of it."""

from __future__ import annotations

import asyncio
from typing import Protocol, runtime_checkable

from execution.replicas.load import Flight, Load
from execution.replicas.process import ProcessWatch
from execution.replicas.rates import Costs, Kin, Rates
from loop.contracts import (
    DeviceView,
    Engine,
    EngineInfo,
    EngineStats,
    LiveReplica,
    ReplicaSpec,
    ReplicaStage,
    ReplicaView,
)

OVERDUE_SHARE = 0.25
"""A replica that is overdue is expected to need so much of the time that it has taken already."""
_new_view = tuple.__new__


@runtime_checkable
class InProcess(Protocol):
    """An engine in a process of its own says which."""

    @property
    def pid(self) -> int | None:
        """Of the engine's process; None: it has none (any more)."""


class Replica:
    """One incarnation: a restart makes another one, with an id of its own."""

    def __init__(
        self,
        identity: int,
        spec: ReplicaSpec,
        engine: Engine,
        devices: tuple[DeviceView, ...],
        *,
        started_s: float,
        start_estimate_s: float,
        nominal: Costs | None,
        kin: Kin | None = None,
    ) -> None:
        self.id = identity
        self.spec = spec
        self.engine = engine
        self.stage = ReplicaStage.STARTING
        self.started_s = started_s
        self.ready_s: float | None = None
        self.start_estimate_s = start_estimate_s
        self.rates = Rates(nominal, kin)
        self.load = Load()
        self.stats = EngineStats()
        """The last reading."""
        self.heard = 0
        """How often tokens have come: a sign of life beside the readings."""
        self.info: EngineInfo | None = None
        self.process: int | None = None
        """Its process when it became ready; None: it has none of its own."""
        self.watch: ProcessWatch | None = None
        self.usd_per_s = sum(d.usd_per_hour for d in devices) / 3600.0
        loop = asyncio.get_running_loop()
        self.death: asyncio.Future[str] = loop.create_future()
        """Why it is dead."""
        self._idle: list[asyncio.Future[None]] = []
        kind = devices[0].kind if devices else ""
        node = devices[0].node if devices else ""
        self._identity = (identity, spec.model, spec.role, kind, node, spec.tp, spec.pp)
        self._view: ReplicaView | None = None

    @property
    def pid(self) -> int | None:
        """Of its process; None: it runs in this one, or has none."""
        return self.engine.pid if isinstance(self.engine, InProcess) else None

    @property
    def ready(self) -> bool:
        """Takes requests."""
        return self.stage is ReplicaStage.READY

    def lost(self, reason: str) -> None:
        """It is gone; whoever watches over it learns so."""
        if not self.death.done():
            self.death.set_result(reason)

    def kill(self) -> None:
        """End its process, if it has one, at once."""
        if self.watch is not None:
            self.watch.kill()

    def unwatch(self) -> None:
        """Nobody looks after its process any more; idempotent."""
        if self.watch is not None:
            self.watch.close()

    def live(self) -> LiveReplica:
        """As a value."""
        return LiveReplica(
            self.id,
            self.spec.model,
            self.spec.devices,
            self.stage,
            self.pid,
            self.started_s,
            self.ready_s,
            self.info,
        )

    # -- what it holds -----------------------------------------------------------------------------------

    def enter(self, flight: Flight) -> None:
        """A request is sent to it."""
        self.load.enter(flight)
        self._view = None

    def progress(self, flight: Flight, tokens: int) -> None:
        """So many tokens of a request have come."""
        self.heard += 1
        self.load.progress(flight, tokens)
        self._view = None

    def leave(self, flight: Flight) -> None:
        """A request has left it."""
        self.load.leave(flight)
        self._view = None
        if not self.load.in_flight:
            for waiter in self._idle:
                if not waiter.done():
                    waiter.set_result(None)
            self._idle.clear()

    def idle(self) -> asyncio.Future[None]:
        """Done as soon as it holds nothing."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.load.in_flight:
            self._idle.append(waiter)
        else:
            waiter.set_result(None)
        return waiter

    def read(self, stats: EngineStats) -> None:
        """A reading of the engine's own counters."""
        self.stats = stats
        if self.rates.learn(stats):
            self._view = None

    def changed(self) -> None:
        """The view is out of date."""
        self._view = None

    # -- the view ----------------------------------------------------------------------------------------

    def ready_in_s(self, now_s: float) -> float:
        """Estimated seconds until it serves; 0 when it does."""
        if self.stage is not ReplicaStage.STARTING:
            return 0.0
        elapsed_s = now_s - self.started_s
        return max(self.start_estimate_s - elapsed_s, OVERDUE_SHARE * elapsed_s, 1e-3)

    @property
    def kv_capacity_tokens(self) -> int:
        """0: not known yet."""
        return self.info.kv_capacity_tokens if self.info else 0

    def counts(self) -> tuple[int, int]:
        """(running, waiting), as its batch limit lets them be: what has given no token yet may run or wait."""
        running = max(self.load.started, min(self.load.in_flight, self.spec.max_num_seqs))
        return running, self.load.in_flight - running

    def view(self, now_s: float) -> ReplicaView:
        """What a router sees now."""
        view = self._view
        if view is None:
            view = self._fresh_view(now_s)
            if self.stage is not ReplicaStage.STARTING:
                self._view = view
        return view

    def _fresh_view(self, now_s: float) -> ReplicaView:
        spec, load, rates = self.spec, self.load, self.rates
        running, waiting = self.counts()
        capacity = self.kv_capacity_tokens
        state = (
            self.ready_in_s(now_s),
            running,
            waiting,
            load.waiting_tokens,
            min(load.kv_tokens, capacity) if capacity else load.kv_tokens,
            capacity,
            load.outstanding_tokens,
            spec.max_num_seqs,
            spec.max_num_batched_tokens,
            rates.prefill_tokens_per_s,
            rates.decode_step_s(running, load.kv_tokens),
            rates.decode_tokens_per_s(spec.max_num_seqs, capacity),
            rates.speed,
        )
        return _new_view(ReplicaView, self._identity + state)
