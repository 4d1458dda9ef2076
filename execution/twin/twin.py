"""The twin: a serving cluster on virtual time, behind the same port as real engines (`DataPlane`)."""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush
from math import inf

from execution.twin.deployment import Deployment
from execution.twin.engine import Agenda
from execution.twin.fleet import Change, Fleet
from execution.twin.gateway import Gateway
from execution.twin.meter import Meter
from execution.twin.ports import PerformanceLike, TopologyLike
from execution.twin.replica import Replica
from execution.twin.sequence import Sequence
from execution.twin.transfer import TransferOffice
from execution.twin.world import NOMINAL, WorldParameters
from loop.contracts import (
    Backlog,
    ClusterEvent,
    Finish,
    Memo,
    Plan,
    PlaneSnapshot,
    Policy,
    Reconfiguration,
    RecordSink,
    Request,
    Resources,
)

Happening = tuple[float, int, ClusterEvent | str]
"""(time, order, an event or the id of a device whose notice ends)."""


class Twin:
    """Discrete-event simulator of an LLM serving cluster. Deterministic for its arguments.

    `performance` is the world's truth; `estimates`, the same unless given, is what the platform believes
    and shows in views. `leap=False` simulates every decode step by itself: the plain reference, slow.
    """

    def __init__(
        self,
        *,
        topology: TopologyLike,
        models: Mapping[str, object],
        performance: PerformanceLike,
        sink: RecordSink,
        seed: int = 0,
        block_tokens: int = 512,
        world: WorldParameters = NOMINAL,
        leap: bool = True,
        estimates: PerformanceLike | None = None,
        prior_output_tokens: float = 256.0,
    ) -> None:
        if block_tokens < 16 or block_tokens % 16:
            raise ValueError(f"block_tokens must be a multiple of 16, not {block_tokens}")
        self._shared = (topology, models, performance, estimates, world)
        self._agenda: Agenda = []
        self.meter = Meter()
        self._fleet = Fleet(topology, world.notice_scale)
        self._gateway = Gateway(
            models, sink, self.meter, block_tokens=block_tokens, prior_output_tokens=prior_output_tokens
        )
        self._deployment = Deployment(
            topology=topology,
            models=models,
            performance=performance,
            estimates=performance if estimates is None else estimates,
            fleet=self._fleet,
            gateway=self._gateway,
            meter=self.meter,
            agenda=self._agenda,
            world=world,
            seed=seed,
            block_tokens=block_tokens,
            leap=leap,
        )
        self._transfers = TransferOffice(
            topology=topology,
            gateway=self._gateway,
            deployment=self._deployment,
            meter=self.meter,
            agenda=self._agenda,
            link_scale=world.link_scale,
        )
        self._now_s = 0.0
        self._happenings: list[Happening] = []
        self._happened = 0
        self._sources: deque[Iterator[Request]] = deque()
        self._next: Request | None = None
        self._latest_arrival_s = -inf
        self._arrived = 0

    # -- DataPlane ---------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """The clock."""
        return self._now_s

    def use(self, policy: Policy, memo: Memo) -> None:
        """Route and order by this policy from now on."""
        self._gateway.use(policy, memo)

    def submit(self, requests: Iterable[Request]) -> None:
        """Add requests, ascending in `arrival_s`; consumed as the clock gets there. Raises ValueError (later,
        when it gets there) for one that is out of order, or asks for an unknown model."""
        self._sources.append(iter(requests))
        if self._next is None:
            self._pull()
        while self._next is not None and self._next.arrival_s <= self._now_s:
            self._gateway.returned.append(self._enter(self._next))
            self._pull()

    def inject(self, event: ClusterEvent) -> None:
        """Let this happen at `max(event.at_s, now_s)`. Raises ValueError for an unknown target."""
        self._fleet.targets(event)
        if event.at_s <= self._now_s:
            self._change(self._fleet.happen(event, self._now_s))
        else:
            self._expect(event.at_s, event)

    def apply(self, plan: Plan) -> Reconfiguration:
        """Begin to carry out a plan, now. Raises PlanError, having changed nothing, when it cannot be."""
        done = self._deployment.apply(plan, self, self._now_s)
        self._gateway.retry(self._transfers.after_loss(self._now_s))
        return done

    def run_until(self, t_s: float) -> None:
        """Advance the clock to t_s."""
        if t_s < self._now_s:
            raise ValueError(f"cannot run back from {self._now_s} s to {t_s} s")
        self._run(t_s, until_idle=False)
        self._now_s = t_s
        self.meter.touch(t_s)

    def run_until_idle(self, limit_s: float = inf) -> bool:
        """Advance until nothing is pending. False: stopped at `limit_s`, or stuck with work that no replica
        can serve (the clock then stands where it got stuck)."""
        done = self._run(limit_s, until_idle=True)
        self.meter.touch(self._now_s)
        return done

    def snapshot(self) -> PlaneSnapshot:
        """The state now."""
        now_s = self._now_s
        self.meter.touch(now_s)
        return PlaneSnapshot(
            now_s=now_s,
            plan=self._deployment.plan(),
            devices=self._fleet.views(now_s),
            replicas=tuple(replica.view(now_s) for replica in self._deployment.active()),
            backlog=self._backlog(),
            resources=self._resources(),
            reconfiguration_stall_s=self.meter.stall_s,
            idle_pending_s=self.meter.idle_pending_s,
        )

    # -- beyond the port ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Give up: everything that has been submitted and is unfinished is LOST. Replicas go on empty: those
        that load become ready in time, those that drain are gone, and more may be submitted."""
        now_s = self._now_s
        self._gateway.take_held()
        unfinished, self._gateway.returned = self._gateway.returned, []
        unfinished += self._transfers.abandon(now_s)
        for replica in list(self._deployment.replicas):
            unfinished += replica.engine.evacuate(now_s)
            replica.rest(now_s)
        while self._next is not None:
            unfinished.append(self._enter(self._next))
            self._pull()
        for seq in sorted(unfinished, key=lambda seq: (seq.request.arrival_s, seq.number)):
            self._gateway.close(seq, Finish.LOST, -1.0, -1, now_s)

    def fork(self, policy: Policy, memo: Memo, sink: RecordSink) -> Twin:
        """An independent copy of this state, with a policy and a sink of its own. Its cost grows with the
        requests on board. Requests not yet consumed are read by both, buffered between them."""
        self._sources, theirs = _split(self._sources)
        mine, self._sources = self._sources, deque()
        shared: list[object] = [*self._shared, *self._gateway.outside()]
        for replica in self._deployment.replicas:
            shared += [replica.spec, replica.costs, replica.estimates]
        shared += [state.device for state in self._fleet.states.values()]
        memory: dict[int, object] = {id(thing): thing for thing in shared}
        try:
            twin = copy.deepcopy(self, memory)
        finally:
            self._sources = mine
        twin._sources = theirs
        twin._gateway.use(policy, memo)
        twin._gateway.divert(sink)
        return twin

    # -- Cluster, for replicas ---------------------------------------------------------------------------

    def completed(self, seq: Sequence, replica: Replica, now_s: float) -> None:
        """A request is done."""
        self._gateway.completed(seq, replica, now_s)

    def hand_off(self, seq: Sequence, source: Replica, now_s: float) -> bool:
        """A prompt is done, and wants to be decoded elsewhere."""
        return self._transfers.send(seq, source, now_s)

    def became_ready(self, replica: Replica, now_s: float) -> None:
        """A replica has loaded."""
        self._deployment.became_ready(replica, now_s)

    def drained(self, replica: Replica, now_s: float) -> None:
        """A replica that was to stop holds no work any more."""
        self._deployment.drained(replica, now_s)

    # -- time --------------------------------------------------------------------------------------------

    def _run(self, limit_s: float, *, until_idle: bool) -> bool:  # noqa: PLR0912 - inner loop: calls cost
        """Let events happen in order up to limit_s; at one instant cluster events come first, then ends of
        iterations, then arrivals, then idle replicas begin. True: idle."""
        agenda, gateway, meter = self._agenda, self._gateway, self.meter
        happenings = self._happenings
        while True:
            while gateway.returned:
                gateway.route_returned(self._now_s)
            while agenda and agenda[0][2] != agenda[0][3].version:
                heappop(agenda)
            event_s = agenda[0][0] if agenda else inf
            request = self._next
            arrival_s = inf if request is None else request.arrival_s
            first_s = event_s if event_s <= arrival_s else arrival_s
            change_s = happenings[0][0] if happenings else inf
            if gateway.woken and min(first_s, change_s, limit_s) > self._now_s:
                self._wake()
                continue
            if until_idle:
                if not meter.pending and request is None:
                    return True
                if first_s == inf:
                    return False
            if change_s <= first_s:
                if change_s > limit_s or change_s == inf:
                    break
                self._now_s = change_s
                self._happen(heappop(happenings)[2])
            elif first_s > limit_s:
                break
            elif event_s <= arrival_s:
                self._now_s = event_s
                heappop(agenda)[3].fire(event_s)
            elif request is not None:
                self._now_s = arrival_s
                seq = self._enter(request)
                self._pull()
                gateway.route(seq, arrival_s)
        if until_idle:
            self._now_s = max(self._now_s, limit_s)
        return False

    def _wake(self) -> None:
        woken, self._gateway.woken = self._gateway.woken, []
        for replica in woken:
            replica.wake(self._now_s)

    def _enter(self, request: Request) -> Sequence:
        self._arrived += 1
        return self._gateway.arrive(request, self._arrived, self._now_s)

    def _pull(self) -> None:
        """Look at the next request."""
        while self._sources:
            request = next(self._sources[0], None)
            if request is not None:
                if not request.arrival_s >= self._latest_arrival_s:
                    raise ValueError(
                        f"request {request.id} arrives at {request.arrival_s} s, before an earlier one's "
                        f"{self._latest_arrival_s} s: arrivals must ascend"
                    )
                self._latest_arrival_s = request.arrival_s
                self._next = request
                return
            self._sources.popleft()
        self._next = None

    # -- changes of the hardware -------------------------------------------------------------------------

    def _expect(self, at_s: float, what: ClusterEvent | str) -> None:
        self._happened += 1
        heappush(self._happenings, (at_s, self._happened, what))

    def _happen(self, what: ClusterEvent | str) -> None:
        if isinstance(what, str):
            self._change(self._fleet.reclaim(what, self._now_s))
        else:
            self._change(self._fleet.happen(what, self._now_s))

    def _change(self, change: Change) -> None:
        now_s = self._now_s
        for at_s, name in change.reclaims:
            self._expect(at_s, name)
        if change.speed:
            self._deployment.pace(change.speed, now_s)
        if change.down:
            lost = self._deployment.lose(change.down, now_s)
            self._gateway.retry(lost + self._transfers.after_loss(now_s))

    # -- the state ---------------------------------------------------------------------------------------

    def _backlog(self) -> tuple[Backlog, ...]:
        waiting = {name: list(seqs) for name, seqs in self._gateway.held.items()}
        running = dict.fromkeys(waiting, 0)
        for seq in self._gateway.returned:
            waiting[seq.request.model].append(seq)
        for replica in self._deployment.replicas:
            waiting[replica.spec.model] += [entry[3] for entry in replica.engine.waiting]
            running[replica.spec.model] += replica.engine.running
        for transfer in self._transfers.flying.values():
            running[transfer.seq.request.model] += 1
        return tuple(
            Backlog(name, len(seqs), sum(seq.request.input_tokens for seq in seqs), running[name])
            for name, seqs in waiting.items()
        )

    def _resources(self) -> Resources:
        used = [replica.used(self._now_s) for replica in self._deployment.replicas]
        return Resources(
            device_s=self.meter.device_s + sum(u.device_s for u in used),
            joules=self.meter.joules + sum(u.joules for u in used),
            usd=self.meter.usd + sum(u.usd for u in used),
        )


def _split(
    sources: deque[Iterator[Request]],
) -> tuple[deque[Iterator[Request]], deque[Iterator[Request]]]:
    pairs = [itertools.tee(source) for source in sources]
    return deque(a for a, _ in pairs), deque(b for _, b in pairs)
