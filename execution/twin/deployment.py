"""Which replicas exist: plans are checked as a whole, then carried out replica by replica as devices get free."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappush
from random import Random

from execution.twin.engine import Agenda, Engine
from execution.twin.fleet import Fleet
from execution.twin.gateway import Gateway
from execution.twin.meter import Meter
from execution.twin.ports import Costs, PerformanceLike, TopologyLike
from execution.twin.prefix_cache import PrefixCache
from execution.twin.replica import Cluster, Replica, State
from execution.twin.sequence import Sequence
from execution.twin.world import WorldParameters
from hw_profiles.performance import InfeasibleError
from loop.contracts import EMPTY_PLAN, Plan, PlanError, Reconfiguration, ReplicaKey, ReplicaSpec, Role

Checked = tuple[ReplicaSpec, Costs, Costs]
ACTIVE = (State.PENDING, State.STARTING, State.SERVING)


class Deployment:
    """The replicas: those of the current plan, and those draining away."""

    def __init__(
        self,
        *,
        topology: TopologyLike,
        models: Mapping[str, object],
        performance: PerformanceLike,
        estimates: PerformanceLike,
        fleet: Fleet,
        gateway: Gateway,
        meter: Meter,
        agenda: Agenda,
        world: WorldParameters,
        seed: int,
        block_tokens: int,
        leap: bool,
    ) -> None:
        self._topology = topology
        self._models = models
        self._performance = performance
        self._estimates = estimates
        self._fleet = fleet
        self._gateway = gateway
        self._meter = meter
        self._agenda = agenda
        self._world = world
        self._seed = seed
        self._block_tokens = block_tokens
        self._leap = leap
        self._next_id = 0
        self._holders: dict[str, Replica] = {}
        """Device -> the replica that has it."""
        self.replicas: list[Replica] = []
        """All that are not gone, in order of creation."""
        self.reason = EMPTY_PLAN.reason

    # -- plans -------------------------------------------------------------------------------------------

    def apply(self, plan: Plan, cluster: Cluster, now_s: float) -> Reconfiguration:
        """Begin to carry a plan out. Raises PlanError, having changed nothing."""
        checked = self._check(plan)
        self._meter.touch(now_s)
        self.reason = plan.reason
        wanted = {spec.key for spec, _, _ in checked}
        for replica in self.replicas:
            self._gateway.returned += replica.engine.withdraw_unstarted()
            replica.changed()
        self._gateway.take_held()
        stopped = self._stop_others(wanted, now_s)
        started, kept, resized = self._start_missing(checked, cluster, now_s)
        self._start_pending(now_s)
        self.relist(now_s)
        waits = [replica.ready_in_s(now_s) for replica in started]
        return Reconfiguration(len(started), stopped, kept, resized, max(waits, default=0.0))

    def _check(self, plan: Plan) -> list[Checked]:
        taken: dict[str, int] = {}
        checked = []
        for number, spec in enumerate(plan.replicas):
            where = f"replica {number} ({spec.model} on {', '.join(spec.devices) or 'no device'})"
            if spec.model not in self._models:
                raise PlanError(f"{where}: unknown model; known are {', '.join(self._models)}")
            if spec.tp < 1 or spec.pp < 1 or spec.tp * spec.pp != len(spec.devices):
                raise PlanError(
                    f"{where}: tp={spec.tp} x pp={spec.pp} needs {spec.tp * spec.pp} devices, "
                    f"not {len(spec.devices)}"
                )
            if spec.max_num_seqs < 1 or spec.max_num_batched_tokens < 1:
                raise PlanError(f"{where}: batch limits must be at least 1")
            for name in spec.devices:
                state = self._fleet.states.get(name)
                if state is None:
                    raise PlanError(f"{where}: the cluster has no device {name!r}")
                if not state.available:
                    raise PlanError(f"{where}: device {name} is down")
                if name in taken:
                    raise PlanError(f"{where}: device {name} belongs to replica {taken[name]} already")
                taken[name] = number
            checked.append((spec, *self._costs(spec, where)))
        return checked

    def _costs(self, spec: ReplicaSpec, where: str) -> tuple[Costs, Costs]:
        model = self._models[spec.model]
        devices = [self._topology.devices[name] for name in spec.devices]
        try:
            costs = self._performance.replica(model, devices, spec.tp, spec.pp, self._topology)
            estimates = self._estimates.replica(model, devices, spec.tp, spec.pp, self._topology)
        except InfeasibleError as error:
            raise PlanError(f"{where}: {error}") from error
        if costs.kv_capacity_tokens < 16:
            raise PlanError(f"{where}: no room for KV cache")
        return costs, estimates

    def _stop_others(self, wanted: set[ReplicaKey], now_s: float) -> int:
        stopped = 0
        for replica in [r for r in self.replicas if r.state in ACTIVE and r.spec.key not in wanted]:
            stopped += 1
            if replica.state is State.SERVING and not replica.idle:
                replica.state = State.DRAINING
                replica.drain_until_s = now_s + replica.drain_estimate_s()
            else:
                # One that never served may hold sequences that were sent to it for decoding.
                self._gateway.retry(replica.engine.evacuate(now_s))
                self._remove(replica, now_s)
        return stopped

    def _start_missing(
        self, checked: list[Checked], cluster: Cluster, now_s: float
    ) -> tuple[list[Replica], int, int]:
        known = {replica.spec.key: replica for replica in self.replicas}
        started = []
        kept = resized = 0
        for rank, (spec, costs, estimates) in enumerate(checked):
            replica = known.get(spec.key)
            if replica is None:
                replica = self._create(spec, costs, estimates, cluster)
                replica.rank = rank
                self.replicas.append(replica)
                started.append(replica)
                continue
            replica.rank = rank
            kept += 1
            if replica.state is State.DRAINING:
                replica.state = State.SERVING
            if replica.spec != spec:
                resized += 1
                replica.resize(spec, now_s)
        for replica in started:
            holders = [self._holders[name] for name in replica.spec.devices if name in self._holders]
            replica.drain_until_s = max((holder.drain_until_s for holder in holders), default=now_s)
        return started, kept, resized

    def _create(self, spec: ReplicaSpec, costs: Costs, estimates: Costs, cluster: Cluster) -> Replica:
        identity = self._next_id
        self._next_id += 1
        states = [self._fleet.states[name] for name in spec.devices]
        slowest = min(states, key=lambda state: state.device.profile.memory_bytes_per_s)
        replica = Replica(
            identity,
            spec,
            cluster,
            costs,
            estimates,
            kind=slowest.device.kind,
            node=states[0].device.node,
            start_s=estimates.start_s,
            usd_per_s=sum(s.device.profile.usd_per_hour for s in states) / 3600.0,
        )
        pool = self._gateway.pools[spec.model]
        cache = None
        bit = 0
        if spec.role is not Role.DECODE:
            bit = pool.take_bit()
            cache = PrefixCache(pool.index, bit, self._block_tokens // 16)
        engine = Engine(
            costs,
            replica,
            self._agenda,
            2 * identity,
            max_seqs=spec.max_num_seqs,
            max_batched=spec.max_num_batched_tokens,
            cache=cache,
            jitter=self._world.jitter,
            random=Random(self._seed * 1_000_003 + identity),
            leap=self._leap,
        )
        engine.speed = self._fleet.speed(spec.devices)
        replica.attach(engine, cache, bit)
        return replica

    def _start_pending(self, now_s: float) -> None:
        for replica in self.replicas:
            if replica.state is State.PENDING and not any(n in self._holders for n in replica.spec.devices):
                for name in replica.spec.devices:
                    self._holders[name] = replica
                replica.hold(now_s)
                ready_at_s = now_s + replica.costs.start_s * self._world.start_scale
                heappush(self._agenda, (ready_at_s, 2 * replica.id + 1, replica.version, replica))

    # -- what happens to replicas ------------------------------------------------------------------------

    def became_ready(self, replica: Replica, now_s: float) -> None:
        """It serves from now on."""
        self._meter.touch(now_s)
        self._count()
        self._gateway.stir(replica)

    def drained(self, replica: Replica, now_s: float) -> None:
        """It holds no work any more: its devices are for others."""
        self._meter.touch(now_s)
        self._remove(replica, now_s)
        self._start_pending(now_s)
        self._count()

    def lose(self, names: tuple[str, ...], now_s: float) -> list[Sequence]:
        """Devices are down, and every replica on them: returns the requests that were on board."""
        gone = set(names)
        on_board: list[Sequence] = []
        self._meter.touch(now_s)
        for replica in [r for r in self.replicas if gone.intersection(r.spec.devices)]:
            if replica.awake:
                replica.awake = False
                self._meter.busy -= 1
            on_board += replica.engine.evacuate(now_s)
            self._remove(replica, now_s)
        self._start_pending(now_s)
        self.relist(now_s)
        return on_board

    def pace(self, names: tuple[str, ...], now_s: float) -> None:
        """The speed of some devices has changed."""
        changed = set(names)
        for replica in self.replicas:
            if changed.intersection(replica.spec.devices):
                replica.set_speed(self._fleet.speed(replica.spec.devices), now_s)

    def _remove(self, replica: Replica, now_s: float) -> None:
        self._meter.spend(replica.used(now_s))
        replica.state = State.GONE
        replica.version += 1
        replica.engine.version += 1
        if replica.cache is not None:
            replica.cache.clear()
            self._gateway.pools[replica.spec.model].give_bit(replica.prefix_bit)
        self.replicas.remove(replica)
        for name in replica.spec.devices:
            if self._holders.get(name) is replica:
                del self._holders[name]

    def relist(self, now_s: float) -> None:
        """The set of replicas that routers choose from has changed."""
        for name, pool in self._gateway.pools.items():
            active = [r for r in self.active() if r.spec.model == name]
            pool.entry.fill([r for r in active if r.spec.role is not Role.DECODE], now_s)
            pool.decode.fill([r for r in active if r.spec.role is Role.DECODE], now_s)
        self._count()

    def _count(self) -> None:
        planned = stalled = 0
        for replica in self.active():
            planned += len(replica.spec.devices)
            if replica.state is not State.SERVING:
                stalled += len(replica.spec.devices)
        self._meter.planned_devices = planned
        self._meter.stalled_devices = stalled

    # -- what there is -----------------------------------------------------------------------------------

    def active(self) -> list[Replica]:
        """Replicas of the plan that are alive or starting, in the order of the plan."""
        return sorted((r for r in self.replicas if r.state in ACTIVE), key=lambda r: r.rank)

    def plan(self) -> Plan:
        """The plan as it stands: the dead are not in it."""
        return Plan(tuple(replica.spec for replica in self.active()), self.reason)
