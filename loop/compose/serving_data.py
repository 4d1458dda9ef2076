"""The data side of a live run: replicas, dispatcher and gateway, all on one event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from execution.replicas.dispatcher import ServedModel as DispatchedModel
from execution.replicas.events import ReplicaEvent, ReplicaEventKind
from execution.replicas.manager import ManagerOptions, ReplicaManager
from execution.replicas.plane import LiveDispatcher, live_dispatcher
from hw_profiles.performance import InfeasibleError, ReplicaPerformance
from loop.compose.serving_body import Body, Load
from loop.compose.serving_config import DEFAULT_PORT, ServingConfig
from loop.compose.serving_gate import ReplicaGate
from loop.compose.serving_world import ServedModel, ServingWorld
from loop.contracts import (
    EMPTY_PLAN,
    Engine,
    EngineSpec,
    Metric,
    ModelCard,
    Plan,
    PlaneSnapshot,
    Policy,
    ReplicaSpec,
    Resources,
)
from loop.gateway import AccessTokens, Gateway, GatewayConfig, GatewayError, settle_heap
from loop.journal_serving import ServedEvent, ServedReplica
from loop.runner.serving_backend import LateBackend
from loop.runner.serving_status import ReplicaLine, ServingStatus
from physical.placement import device_views

EngineBuilder = Callable[[EngineSpec, ServedModel], Engine]
"""Builds an engine that has not started. May raise."""

_PORTS = 20
"""Looked at, from the default one on, for a free one."""
_ENDS = {
    ReplicaEventKind.STOPPED: "stopped",
    ReplicaEventKind.DIED: "died",
    ReplicaEventKind.FAILED: "failed",
}


class StartError(RuntimeError):
    """The first replicas did not come up; the message says why."""


class DataSide:
    """Everything that serves. Construct and use it on the event loop."""

    def __init__(
        self, config: ServingConfig, world: ServingWorld, status: ServingStatus, build: EngineBuilder
    ) -> None:
        self._config = config
        self._world = world
        self._status = status
        self._build = build
        self._created = int(time.time())
        self._known: dict[int, ServedReplica] = {}
        self._failures: list[str] = []
        self.replica_news: deque[ServedReplica] = deque()
        """For the journal; times are `time.monotonic()`."""
        self.event_news: deque[ServedEvent] = deque()
        """Likewise."""
        specs = world.world.models
        cards = [
            ModelCard(m.name, specs[m.name].max_context_tokens, self._created, ready=False)
            for m in world.models
        ]
        self.body: Body | None = None
        """What watches the devices; None: nobody does."""
        self._backend = LateBackend(tuple(cards), beside=self._device_metrics)
        self.dispatcher: LiveDispatcher | None = None
        self.gateway: Gateway | None = None
        topology = world.world.topology
        self.manager = ReplicaManager(
            self._engine,
            device_views(topology),
            [m.name for m in world.models],
            options=ManagerOptions(
                overlap=world.on_cpu,
                max_waiting=config.max_waiting,
                drain_limit_s=max(1.0, config.drain_s),
                start_estimate_s=max(o.start_s for o in world.world.options),
            ),
            fits=world.fits,
            costs=self._costs,
            events=self._heard,
        )

    # -- replicas ----------------------------------------------------------------------------------------

    def before_the_first_plan(self) -> PlaneSnapshot:
        """Devices, and nothing on them."""
        return PlaneSnapshot(0.0, EMPTY_PLAN, self.manager.devices, (), (), Resources(), 0.0, 0.0)

    async def deploy(self, plan: Plan, gate: ReplicaGate) -> None:
        """Bring the first plan up, through the gate; every model has a replica that serves when this returns.

        Raises:
            PlanError: it cannot be carried out.
            StartError: a model has no replica that came up.
        """
        await asyncio.to_thread(gate.deploy, plan)
        await self.manager.settled()
        missing = [m.name for m in self._world.models if not self.manager.serving(m.name)]
        if missing:
            why = self._failures[-1] if self._failures else "no replica of it is in the first plan"
            raise StartError(f"no replica of {', '.join(missing)} came up: {why}")

    def dispatch_by(self, policy: Policy) -> LiveDispatcher:
        """Begin to dispatch; every model has a replica that serves."""
        models = []
        for m in self._world.models:
            engine = self.manager.serving(m.name)[0].engine
            models.append(DispatchedModel(m.name, engine.tokenizer, engine.info.max_model_len, self._created))
        self.dispatcher = live_dispatcher(self.manager, models, policy)
        return self.dispatcher

    def lines(self) -> tuple[ReplicaLine, ...]:
        """Replicas as they are now."""
        found = []
        for r in self.manager.present():
            running, waiting = r.counts()
            capacity = r.kv_capacity_tokens
            found.append(
                ReplicaLine(
                    r.id,
                    r.spec.model,
                    r.spec.devices,
                    r.stage.value,
                    r.pid,
                    running,
                    waiting,
                    min(1.0, r.load.kv_tokens / capacity) if capacity else 0.0,
                    r.spec.max_num_seqs,
                    r.spec.max_num_batched_tokens,
                )
            )
        return tuple(found)

    def load(self) -> Load:
        """Work of all replicas, as it was shown last. From any thread."""
        if self.dispatcher is None:
            return Load(0, 0, 0)
        over = sum(dict(self.dispatcher.outcomes).values())
        waiting = sum(line.waiting for line in self._status.replicas)
        return Load(waiting, over + self.dispatcher.pending, over)

    def told_by_gate(self, kind: str, words: str) -> None:
        """The gate did something, or refused to: for the journal, and for whoever watches. From any thread."""
        self.event_news.append(ServedEvent(time.monotonic(), kind, -1, "", (), words))
        self._status.happened(f"gate: {kind}: {words}")

    def pids(self) -> tuple[int, ...]:
        """Of every engine process."""
        return tuple(r.pid for r in self.manager.present() if r.pid is not None)

    # -- the gateway -------------------------------------------------------------------------------------

    async def listen(self) -> Gateway:
        """Take the address, and answer 503 until `open`. Raises GatewayError, AccessError."""
        config = self._config
        given = GatewayConfig(
            host=config.host,
            port=DEFAULT_PORT if config.port is None else config.port,
            tokens=access_tokens(config),
            allow_open=config.allow_open,
            deadline_s=config.deadline_s,
            max_deadline_s=max(3600.0, config.deadline_s),
            shutdown_s=config.drain_s,
        )
        first = given.port
        for port in range(first, first + (_PORTS if config.port is None else 1)):
            self.gateway = Gateway(self._backend, given.model_copy(update={"port": port}))
            try:
                await self.gateway.start()
            except GatewayError as error:
                if config.port is None and "cannot listen" in str(error) and port < first + _PORTS - 1:
                    continue
                raise
            if config.port is None and port != first:
                self._status.happened(f"port {first} is taken: listening on {port} instead (--port)")
            return self.gateway
        raise GatewayError(f"no free port from {first} to {first + _PORTS - 1}: name one (--port)")

    def open(self) -> None:
        """Serve whoever asks from now on."""
        if self.dispatcher is None:
            raise RuntimeError("there is nothing to serve from yet")
        settle_heap()
        self._backend.open(self.dispatcher)

    # -- details -----------------------------------------------------------------------------------------

    def _device_metrics(self) -> Iterable[Metric]:
        return () if self.body is None else self.body.metrics()

    def _engine(self, replica: ReplicaSpec) -> Engine:
        spec = self._world.engine_spec(replica, max_waiting=self._config.max_waiting, seed=self._config.seed)
        return self._build(spec, self._world.named(replica.model))

    def _costs(self, replica: ReplicaSpec) -> ReplicaPerformance | None:
        world = self._world.world
        devices = [world.topology.devices[name] for name in replica.devices]
        try:
            return world.estimates.replica(
                world.models[replica.model], devices, replica.tp, replica.pp, world.topology
            )
        except InfeasibleError:
            return None

    def _heard(self, event: ReplicaEvent) -> None:
        """Something happened to a replica: for the journal, and for whoever watches."""
        kind = event.kind
        self.event_news.append(
            ServedEvent(
                event.at_s, kind.value, event.replica, event.model, event.devices, event.reason, event.pid
            )
        )
        if kind in (ReplicaEventKind.FAILED, ReplicaEventKind.GAVE_UP):
            self._failures.append(f"{event.model} on {', '.join(event.devices)}: {event.reason}")
        self._learn(event)
        who = f"replica {event.replica}" if event.replica >= 0 else "a replica"
        places = ", ".join(event.devices)
        reason = f": {event.reason}" if event.reason else ""
        self._status.happened(f"{who} of {event.model} on {places}: {kind.value}{reason}")

    def _learn(self, event: ReplicaEvent) -> None:
        found = next((r for r in self.manager.present() if r.id == event.replica), None)
        known = self._known.get(event.replica)
        if event.kind is ReplicaEventKind.STARTED and found is not None:
            engine = self._world.named(event.model).engine
            known = ServedReplica(event.replica, found.spec, engine, event.at_s)
        elif known is None:
            return
        elif event.kind is ReplicaEventKind.READY and found is not None and found.info is not None:
            info = found.info
            known = replace(
                known,
                ready_s=event.at_s,
                kv_capacity_tokens=info.kv_capacity_tokens,
                max_model_len=info.max_model_len,
                block_tokens=info.block_tokens,
            )
        elif event.kind in _ENDS:
            known = replace(known, ended_s=event.at_s, ended=_ENDS[event.kind])
        else:
            return
        if known.ended is None:
            self._known[event.replica] = known
        else:
            self._known.pop(event.replica, None)
        self.replica_news.append(known)


def access_tokens(config: ServingConfig) -> AccessTokens:
    """Of a file, else of the environment. Raises AccessError."""
    if config.token_file is not None:
        return AccessTokens.from_file(Path(config.token_file))
    return AccessTokens.from_environment()


async def ended_within(manager: ReplicaManager, limit_s: float) -> bool:
    """Close a manager; False: it took longer."""
    try:
        async with asyncio.timeout(limit_s):
            await manager.close()
    except TimeoutError:
        return False
    return True
