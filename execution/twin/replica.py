"""A replica's life: waiting for its devices, loading, serving, draining; and the view that routers have of it."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from execution.twin.engine import IDLE, Engine
from execution.twin.listing import Listing
from execution.twin.meter import Meter
from execution.twin.ports import Costs
from execution.twin.prefix_cache import PrefixCache
from execution.twin.sequence import Sequence
from loop.contracts import ReplicaSpec, ReplicaView, Resources, Role

TYPICAL_CONTEXT_TOKENS = 1024
"""Context of a sequence in the well-filled batch of `ReplicaView.decode_tokens_per_s`."""
OVERDUE_S = 1e-3
"""What `ready_in_s` says of a replica that should have been ready by now."""
_new_view = tuple.__new__


class State(Enum):
    """Where a replica is in its life."""

    PENDING = "pending"  # its devices are held by others
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"


_SERVING = State.SERVING  # the lookup in an enumeration is slow


class Cluster(Protocol):
    """What a replica asks of the cluster around it."""

    meter: Meter

    def completed(self, seq: Sequence, replica: Replica, now_s: float) -> None:
        """A request is done."""

    def hand_off(self, seq: Sequence, source: Replica, now_s: float) -> bool:
        """Send the KV of a prefilled sequence to a decode replica; False: there is none that could hold it."""

    def became_ready(self, replica: Replica, now_s: float) -> None:
        """It has loaded."""

    def drained(self, replica: Replica, now_s: float) -> None:
        """It holds no work any more."""


class Replica:
    """One replica of a plan. Build its engine with `attach`."""

    __slots__ = (
        "_identity",
        "_rates",
        "_seen_kv",
        "_seen_n",
        "_seen_step_s",
        "awake",
        "cache",
        "cluster",
        "costs",
        "dirty",
        "drain_until_s",
        "engine",
        "estimates",
        "held_since_s",
        "id",
        "inbound",
        "link_free_s",
        "listing",
        "position",
        "prefix_bit",
        "rank",
        "spec",
        "start_s",
        "state",
        "usd_per_s",
        "version",
        "woken",
    )

    engine: Engine

    def __init__(
        self,
        identity: int,
        spec: ReplicaSpec,
        cluster: Cluster,
        costs: Costs,
        estimates: Costs,
        *,
        kind: str,
        node: str,
        start_s: float,
        usd_per_s: float,
    ) -> None:
        self.id = identity
        self.rank = 0
        """Position in the plan."""
        self.spec = spec
        self.cluster = cluster
        self.costs = costs
        self.estimates = estimates
        """What the platform believes of it: the nominal performance model."""
        self._identity = (identity, spec.model, spec.role, kind, node, spec.tp, spec.pp)
        self.start_s = start_s
        self.usd_per_s = usd_per_s
        self.cache: PrefixCache | None = None
        self.prefix_bit = 0
        self.state = State.PENDING
        self.version = 0
        self.held_since_s = -1.0
        self.drain_until_s = 0.0
        """While pending: when its devices are expected to be free."""
        self.link_free_s = 0.0
        self.inbound = 0
        """KV transfers on their way to it."""
        self.awake = False
        self.woken = False
        self.dirty = True
        self.listing: Listing | None = None
        self.position = 0
        self._rates = (0.0, 0.0)
        """Prefill and decode tokens per second, well filled, at the speed it has now."""
        self._seen_n = self._seen_kv = 0
        """The batch that the last view showed, and its iteration time."""
        self._seen_step_s = 0.0

    def attach(self, engine: Engine, cache: PrefixCache | None, prefix_bit: int) -> None:
        """Give it its batch and, bit by bit of the model's index, its prefix cache."""
        self.engine = engine
        self.cache = cache
        self.prefix_bit = prefix_bit
        self._estimate_rates()

    # -- Host of the engine ------------------------------------------------------------------------------

    def changed(self) -> None:
        """The view is out of date."""
        if not self.dirty:
            self.dirty = True
            if self.listing is not None:
                self.listing.stale.append(self)

    def finished(self, seq: Sequence, now_s: float) -> None:
        """All output tokens are out."""
        self.cluster.completed(seq, self, now_s)

    def prefilled(self, seq: Sequence, now_s: float) -> bool:
        """True: the KV goes to a decode replica."""
        return self.spec.role is Role.PREFILL and self.cluster.hand_off(seq, self, now_s)

    def rest(self, now_s: float) -> None:
        """The engine has nothing to do."""
        if self.awake:
            self.awake = False
            self.cluster.meter.touch(now_s)
            self.cluster.meter.busy -= 1
        if self.state is State.DRAINING and self.idle:
            self.cluster.drained(self, now_s)

    # -- life --------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Holds no request, and none is on its way."""
        return self.inbound == 0 and self.engine.empty

    def wake(self, now_s: float) -> None:
        """Begin to iterate, if there is anything to do and it serves."""
        self.woken = False
        engine = self.engine
        if engine.mode == IDLE and self.state in (State.SERVING, State.DRAINING):
            engine.begin(now_s)
            if engine.mode != IDLE:
                self.awake = True
                self.cluster.meter.touch(now_s)
                self.cluster.meter.busy += 1

    def hold(self, now_s: float) -> None:
        """Its devices are its own: load."""
        self.state = State.STARTING
        self.held_since_s = now_s
        self.version += 1
        self.changed()

    def fire(self, now_s: float) -> None:
        """Loaded."""
        self.state = State.SERVING
        self.changed()
        self.cluster.became_ready(self, now_s)

    def resize(self, spec: ReplicaSpec, now_s: float) -> None:
        """Other batch limits, live."""
        self.spec = spec
        self.engine.max_seqs = spec.max_num_seqs
        self.engine.max_batched = spec.max_num_batched_tokens
        self.engine.interrupt(now_s)
        self._estimate_rates()
        self.changed()

    def set_speed(self, speed: float, now_s: float) -> None:
        """From the next iteration on."""
        if speed != self.engine.speed:
            self.engine.interrupt(now_s)
            self.engine.speed = speed
            self._estimate_rates()
            self.changed()

    def used(self, now_s: float) -> Resources:
        """Since it began to load."""
        if self.held_since_s < 0.0:
            return Resources()
        held_s = now_s - self.held_since_s
        engine = self.engine
        busy_s = engine.busy_s + (now_s - engine.busy_since_s if engine.mode != IDLE else 0.0)
        return Resources(
            device_s=held_s * len(self.spec.devices),
            joules=busy_s * self.costs.busy_watts + (held_s - busy_s) * self.costs.idle_watts,
            usd=held_s * self.usd_per_s,
        )

    # -- the view ----------------------------------------------------------------------------------------

    def ready_in_s(self, now_s: float) -> float:
        """Estimated seconds until it serves; 0 when it does."""
        if self.state is State.STARTING:
            return max(self.held_since_s + self.start_s - now_s, OVERDUE_S)
        if self.state is State.PENDING:
            return max(self.drain_until_s - now_s, 0.0) + self.start_s
        return 0.0

    def drain_estimate_s(self) -> float:
        """How long it would take to finish what it runs, by the estimates."""
        engine = self.engine
        running = engine.running
        if not running:
            return 0.0
        step_s = self.estimates.iteration_s(running, max(engine.anchor_kv, running), ()) / engine.speed
        return engine.outstanding_tokens() / running * step_s

    def view(self, now_s: float) -> ReplicaView:
        """What a router sees now."""
        engine = self.engine
        speed = engine.speed
        prefill_tokens_per_s, decode_tokens_per_s = self._rates
        n = running = engine.running
        kv = engine.anchor_kv
        capacity = self.costs.kv_capacity_tokens
        held = kv + (engine.extra_blocks << 4)
        if not n:
            n = 1
        kv = kv if kv > n else n
        if n != self._seen_n or kv != self._seen_kv:
            self._seen_n, self._seen_kv = n, kv
            self._seen_step_s = self.estimates.iteration_s(n, kv)
        state = (
            0.0 if self.state is _SERVING else self.ready_in_s(now_s),
            running,
            len(engine.waiting),
            engine.prompt_tokens,
            held if held < capacity else capacity,
            capacity,
            float(engine.outstanding_tokens()),
            engine.max_seqs,
            engine.max_batched,
            prefill_tokens_per_s,
            self._seen_step_s / speed,
            decode_tokens_per_s,
            speed,
        )
        return _new_view(ReplicaView, self._identity + state)

    def _estimate_rates(self) -> None:
        n = max(1, min(self.spec.max_num_seqs, self.costs.kv_capacity_tokens // TYPICAL_CONTEXT_TOKENS))
        step_s = self.estimates.iteration_s(n, n * TYPICAL_CONTEXT_TOKENS, ())
        speed = self.engine.speed
        self._rates = (self.estimates.prefill_tokens_per_s * speed, n / step_s * speed)
