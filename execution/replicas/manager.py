"""Carries out plans on live engines: starts, keeps, resizes, replaces and ends replicas, and restarts the dead.

An old replica goes on serving until the new ones that take its place (same devices, or same model) are ready. When
devices are exclusive, an old replica whose devices a new one needs must go first. What does not come up leaves the
old one serving. All of it belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog

from execution.replicas.events import EventSink, ReplicaEvent, ReplicaEventKind
from execution.replicas.feasible import SpecCheck, check_plan
from execution.replicas.ledger import Ledger
from execution.replicas.options import ManagerOptions
from execution.replicas.rates import Costs, Kin
from execution.replicas.replica import Replica
from execution.replicas.supervisor import Course, Supervisor
from execution.twin.meter import Meter
from loop.contracts import (
    EMPTY_PLAN,
    DeviceView,
    Engine,
    LiveReplica,
    Plan,
    Reconfiguration,
    ReplicaKey,
    ReplicaSpec,
    ReplicaStage,
    Resources,
)

__all__ = ["CostsOf", "EngineFactory", "ManagerOptions", "ReplicaManager"]

_log = structlog.get_logger(__name__)
EngineFactory = Callable[[ReplicaSpec], Engine]
"""Builds an engine that has not started; may raise."""
CostsOf = Callable[[ReplicaSpec], Costs | None]
"""The performance model's word on a replica; None: it has none."""
StageHook = Callable[[Replica], None]
_Kind = ReplicaEventKind
_LOUD = frozenset({_Kind.DIED, _Kind.FAILED, _Kind.GAVE_UP, _Kind.KEPT})
_ALIVE = frozenset({ReplicaStage.STARTING, ReplicaStage.READY, ReplicaStage.DRAINING})


class ReplicaManager:
    """Live replicas by the current plan. Implements ReplicaManagerPort. Build it inside the event loop."""

    def __init__(
        self,
        factory: EngineFactory,
        devices: Iterable[DeviceView],
        models: Iterable[str],
        *,
        options: ManagerOptions | None = None,
        fits: SpecCheck | None = None,
        costs: CostsOf | None = None,
        events: EventSink | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options or ManagerOptions()
        self.models = tuple(models)
        self.meter = Meter()
        """Stalls and idleness; the dispatcher counts what is pending."""
        self.version = 0
        """One higher whenever a replica comes, goes or changes its stage."""
        self.deaths = self.restarts = 0
        self.on_stage: list[StageHook] = []
        """Called with each replica that has become ready, or takes nothing more."""
        self.change = asyncio.Event()
        """Set at the next change; another one stands here after each."""
        self._factory = factory
        self._fits = fits
        self._costs = costs
        self._events = events
        self._clock = clock
        self._ledger = Ledger(
            devices,
            clock,
            exclusive=not self.options.overlap,
            start_estimate_s=self.options.start_estimate_s,
        )
        self._wanted: dict[ReplicaKey, Supervisor] = {}
        self._retiring: dict[Supervisor, asyncio.Task[None]] = {}
        """Old ones that serve until their successors are ready -> what waits for these."""
        self._all: list[Supervisor] = []
        self._gave_up_s: dict[ReplicaKey, float] = {}
        self._reason = EMPTY_PLAN.reason
        self._next_id = 0
        self._kin: dict[tuple[object, ...], Kin] = defaultdict(Kin)
        """What replicas of one kind have measured together."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: dict[str, tuple[Replica, ...]] | None = None
        self._closed = False

    # -- plans -------------------------------------------------------------------------------------------

    async def apply(self, plan: Plan) -> Reconfiguration:
        """Begin to carry a plan out. Raises PlanError, having changed nothing, when it cannot be."""
        if self._closed:
            raise RuntimeError("the replica manager is closed")
        check_plan(plan, self._ledger.devices, self.models, self._fits)
        self._reason = plan.reason
        before, self._wanted = self._wanted, {}
        missing: list[tuple[int, ReplicaSpec]] = []
        resized = 0
        for rank, spec in enumerate(plan.replicas):
            supervisor = before.pop(spec.key, None) or self._called_back(spec.key)
            if supervisor is None:
                missing.append((rank, spec))
                continue
            supervisor.rank = rank
            self._wanted[spec.key] = supervisor
            if supervisor.spec != spec:
                resized += 1
                supervisor.spec = spec
                self._spawn(supervisor.resize())
        kept = len(self._wanted)
        started = [self._engage(spec, rank) for rank, spec in missing]
        for old in [*before.values(), *self._waiting_to_go()]:
            self._retire(old)
        self.changed()
        expected_s = max((self._expected_s(s) for s in started), default=0.0)
        return Reconfiguration(len(started), len(before), kept, resized, expected_s)

    async def settled(self) -> None:
        """Return when no replica is starting, draining or being replaced."""
        while self._retiring or self._tasks or any(not s.serves for s in self._all):
            await self.change.wait()

    def plan(self) -> Plan:
        """The plan as it stands: without the replicas that were given up."""
        return Plan(tuple(s.spec for s in self._in_order()), self._reason)

    async def close(self) -> None:
        """End every process that it started; idempotent."""
        self._closed = True
        pending = {*self._retiring.values(), *self._tasks}
        for task in pending:
            task.cancel()
        pending |= {supervisor.end() for supervisor in self._all}
        if pending:
            await asyncio.wait(pending)
        while self._all:  # their last words come a turn of the loop later
            await asyncio.sleep(0)
        self._wanted.clear()
        self.changed()

    # -- what there is -----------------------------------------------------------------------------------

    def replicas(self) -> tuple[LiveReplica, ...]:
        """All that are alive."""
        return tuple(r.live() for r in self._ledger.replicas.values() if r.stage in _ALIVE)

    def present(self) -> tuple[Replica, ...]:
        """All that hold devices, in order of creation."""
        return tuple(self._ledger.replicas.values())

    def planned(self) -> tuple[Replica, ...]:
        """Those of the plan that are starting or serving, in the plan's order."""
        found = (s.replica for s in self._in_order())
        return tuple(
            r for r in found if r is not None and r.stage in (ReplicaStage.STARTING, ReplicaStage.READY)
        )

    def serving(self, model: str) -> tuple[Replica, ...]:
        """Those that take requests of a model, in order of creation: of the plan, and old ones whose successors are
        not ready."""
        if self._serving is None:
            found: dict[str, list[Replica]] = {name: [] for name in self.models}
            for replica in self._ledger.replicas.values():
                if replica.ready:
                    found[replica.spec.model].append(replica)
            self._serving = {name: tuple(replicas) for name, replicas in found.items()}
        return self._serving.get(model, ())

    def coming(self, model: str) -> bool:
        """Whether a replica of the model starts, or will."""
        return any(
            s.spec.model == model and s.course not in (Course.STOPPING, Course.OVER)
            for s in self._wanted.values()
        )

    def ready_in_s(self, model: str) -> float:
        """Estimated seconds until a replica of the model serves; 0 when one does."""
        if self.serving(model):
            return 0.0
        waits = [self._expected_s(s) for s in self._wanted.values() if s.spec.model == model]
        return min(waits, default=self._ledger.start_s(model))

    @property
    def devices(self) -> tuple[DeviceView, ...]:
        """As they were last told."""
        return tuple(self._ledger.devices.values())

    def see_devices(self, devices: Iterable[DeviceView]) -> None:
        """What telemetry says of the devices now: the next plan is checked against it."""
        self._ledger.devices = {device.id: device for device in devices}

    def resources(self) -> Resources:
        """Spent so far, by replicas that are gone and those that are not. Joules are not measured here."""
        return self._ledger.resources()

    def lost(self, replica: Replica, reason: str) -> None:
        """It is dead: nothing more is sent to it from this moment, and its supervisor sees to the rest."""
        replica.lost(reason)
        if replica.ready:
            replica.stage = ReplicaStage.DEAD
            replica.changed()
            self.changed()

    # -- what the supervisors ask for --------------------------------------------------------------------

    def now_s(self) -> float:
        """The clock."""
        return self._clock()

    async def claim(self, supervisor: Supervisor) -> None:
        """Wait until its devices are its own."""
        await self._ledger.claim(supervisor, supervisor.spec.devices)

    def open(self, spec: ReplicaSpec) -> Replica:
        """Build a replica with an engine that has not started."""
        devices = self._ledger.views(spec)
        kind = (spec.model, spec.tp, spec.pp, *sorted(d.kind for d in devices))
        replica = Replica(
            self._next_id,
            spec,
            self._factory(spec),
            devices,
            started_s=self._clock(),
            start_estimate_s=self._ledger.start_s(spec.model),
            nominal=self._costs(spec) if self._costs is not None else None,
            kin=self._kin[kind],
        )
        self._next_id += 1
        self._ledger.opened(replica)
        return replica

    def shut(self, replica: Replica) -> None:
        """It holds no devices any more."""
        self._ledger.shut(replica)

    def tell(self, kind: ReplicaEventKind, spec: ReplicaSpec, replica: Replica | None, reason: str) -> None:
        """Something has happened."""
        self.deaths += kind in (_Kind.DIED, _Kind.FAILED)
        self.restarts += kind is _Kind.RESTART
        if replica is not None:
            if kind is _Kind.READY and replica.ready_s is not None:
                self._ledger.learn_start(spec.model, replica.ready_s - replica.started_s)
            if kind in (_Kind.READY, _Kind.DRAINING):
                asyncio.get_running_loop().call_soon(self._call_hooks, replica)
        identity, pid = (-1, None) if replica is None else (replica.id, replica.process)
        say = _log.warning if kind in _LOUD else _log.info
        say(f"replica {kind.value}", replica=identity, model=spec.model, devices=spec.devices, reason=reason)
        if self._events is None:
            return
        try:
            self._events(ReplicaEvent(self._clock(), kind, identity, spec.model, spec.devices, reason, pid))
        except Exception as error:  # noqa: BLE001 - who listens must not harm who serves
            _log.error("event not taken", kind=kind.value, exc_info=error)

    def changed(self) -> None:
        """The set of replicas, or the stage of one, is another now."""
        self.version += 1
        self._serving = None
        self.meter.touch(self._clock())
        sizes = [(len(s.spec.devices), s.serves) for s in self._wanted.values()]
        self.meter.planned_devices = sum(devices for devices, _ in sizes)
        self.meter.stalled_devices = sum(devices for devices, serves in sizes if not serves)
        change, self.change = self.change, asyncio.Event()
        change.set()

    def gave_up(self, supervisor: Supervisor) -> None:
        """It will not come up any more: what had to go for it comes back, unless it has served meanwhile."""
        if self._wanted.get(supervisor.spec.key) is not supervisor:
            return
        del self._wanted[supervisor.spec.key]
        self._gave_up_s[supervisor.spec.key] = self._clock()
        self._ledger.release(supervisor)
        for spec in supervisor.displaced:
            self._bring_back(spec, supervisor.rank)
        self.changed()

    def departed(self, supervisor: Supervisor) -> None:
        """It has ended all that it had."""
        self._ledger.release(supervisor)
        if supervisor in self._all:
            self._all.remove(supervisor)
        if self._wanted.get(supervisor.spec.key) is supervisor:
            del self._wanted[supervisor.spec.key]
        self.changed()

    # -- succession --------------------------------------------------------------------------------------

    def _engage(self, spec: ReplicaSpec, rank: int) -> Supervisor:
        failed_s = self._gave_up_s.pop(spec.key, None)
        doubted = failed_s is not None and self._clock() - failed_s < self.options.doubt_s
        supervisor = Supervisor(spec, rank, self, doubted=doubted)
        self._all.append(supervisor)
        self._wanted[spec.key] = supervisor
        return supervisor

    def _called_back(self, key: ReplicaKey) -> Supervisor | None:
        """One that was to go and can stay."""
        for supervisor in [s for s in self._all if s.retiring and s.spec.key == key]:
            waiting = self._retiring.pop(supervisor, None)
            if waiting is not None:
                waiting.cancel()
            if supervisor.stay():
                return supervisor
        return None

    def _waiting_to_go(self) -> list[Supervisor]:
        """Old ones of an earlier plan that still serve: from now on they wait for the newest plan's replicas."""
        waiting = list(self._retiring)
        for task in self._retiring.values():
            task.cancel()
        self._retiring.clear()
        return waiting

    def _retire(self, old: Supervisor) -> None:
        """End an old one, as soon as those that take its place serve."""
        old.retiring = True
        coming = [s for s in self._wanted.values() if not s.serves]
        sharing = {s for s in coming if not set(old.spec.devices).isdisjoint(s.spec.devices)}
        successors = [s for s in coming if s in sharing or s.spec.model == old.spec.model]
        if not old.serves or not successors:
            old.leave()
        elif sharing and not self.options.overlap:
            for supervisor in sharing:
                supervisor.displaced += (old.spec,)
            old.leave()
        else:
            self._retiring[old] = self._spawn(self._replaced(old, [s.settled for s in successors]))

    async def _replaced(self, old: Supervisor, settled: list[asyncio.Future[bool]]) -> None:
        """Wait for the successors; without any that came to serve, the old one stays."""
        await asyncio.wait(settled)
        self._retiring.pop(old, None)
        if any(served.result() for served in settled):
            old.leave()
        else:
            self._bring_back(old.spec, old.rank)
        self.changed()

    def _bring_back(self, spec: ReplicaSpec, rank: int) -> None:
        """Its successors did not come up: it stays, or starts again, unless its place is taken."""
        taken = {name for s in self._wanted.values() for name in s.spec.devices}
        if spec.key in self._wanted or not taken.isdisjoint(spec.devices):
            for old in [s for s in self._all if s.retiring and s.spec.key == spec.key]:
                old.leave()
            return
        supervisor = self._called_back(spec.key)
        how = "stays" if supervisor is not None else "starts again"
        replica = None if supervisor is None else supervisor.replica
        self.tell(_Kind.KEPT, spec, replica, f"{how}: its successors did not come up")
        if supervisor is None:
            supervisor = self._engage(spec, rank)
        self._wanted[spec.key] = supervisor

    # -- inside ------------------------------------------------------------------------------------------

    def _in_order(self) -> list[Supervisor]:
        return sorted(self._wanted.values(), key=lambda s: s.rank)

    def _expected_s(self, supervisor: Supervisor) -> float:
        """Until it serves, by what starts took so far, and what its devices have to finish first."""
        if supervisor.serves:
            return 0.0
        if supervisor.replica is not None:
            return supervisor.replica.ready_in_s(self._clock())
        holders = self._ledger.holders(supervisor.spec.devices) - {supervisor}
        drains = [
            self._drain_s(h.replica) for h in holders if isinstance(h, Supervisor) and h.replica is not None
        ]
        return self._ledger.start_s(supervisor.spec.model) + max(drains, default=0.0)

    def _drain_s(self, replica: Replica) -> float:
        running, _ = replica.counts()
        if not running:
            return 0.0
        step_s = replica.rates.decode_step_s(running, replica.load.kv_tokens)
        return min(replica.load.outstanding_tokens / running * step_s, self.options.drain_limit_s)

    def _call_hooks(self, replica: Replica) -> None:
        for hook in self.on_stage:
            hook(replica)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def over(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            if not done.cancelled() and done.exception() is not None:
                _log.error("replica manager failed", exc_info=done.exception())
            self.changed()

        task.add_done_callback(over)
        return task
