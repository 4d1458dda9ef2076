"""Live replicas behind the port that the controller drives: the twin's place, on the real clock.

The controller runs in a thread of its own; manager and dispatcher belong to the event loop. Orders cross over one way,
and what has happened the other: requests that arrived or are over are handed to the controller's thread while it waits
for the clock, so that whoever listens there needs no locks.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, TypeVar

from execution.replicas.dispatcher import Dispatcher, ServedModel
from execution.replicas.manager import ReplicaManager
from execution.replicas.ticket import Ticket
from loop.contracts import (
    ClusterEvent,
    EngineStats,
    Finish,
    Memo,
    Plan,
    PlanError,
    PlaneSnapshot,
    Policy,
    Reconfiguration,
    Request,
    RequestRecord,
    ServeRequest,
)

T = TypeVar("T")
_LOOK_S = 0.2
_READ_S = 1.0
_MOST_READINGS = 4096
"""That wait for a controller that is busy; the oldest go first."""
_ANSWER_S = 60.0
"""For the event loop to answer; it never takes so long while it is alive."""


@dataclass(frozen=True, slots=True)
class Served:
    """A request that is over. Times are the plane's."""

    record: RequestRecord
    workload: Request
    """As the twin would replay it."""
    request_id: str
    max_tokens: int
    policy: str
    """Digest of the policy that decided when it was accepted."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters of one replica."""

    at_s: float
    replica: int
    stats: EngineStats


class PlaneClosedError(RuntimeError):
    """The event loop that the plane lives on is gone."""


class LiveDispatcher(Dispatcher):
    """A dispatcher that tells a plane of each request that comes and goes."""

    plane: LivePlane | None = None
    _record: RequestRecord | None = None

    def __init__(self, *given: Any, **settings: Any) -> None:
        """As a Dispatcher."""
        super().__init__(*given, **settings)
        self._policies: dict[int, str] = {}

    def _accept(self, request: ServeRequest) -> Ticket:
        ticket = super()._accept(request)
        self._policies[ticket.number] = self.desk.policy.digest
        if self.plane is not None:
            self.plane.note_arrival(ticket.as_workload())
        return ticket

    def _close(self, ticket: Ticket, finish: Finish) -> None:
        super()._close(ticket, finish)
        record, self._record = self._record, None
        policy = self._policies.pop(ticket.number)
        if self.plane is not None and record is not None:
            self.plane.note_end(
                Served(
                    record,
                    ticket.as_workload(),
                    ticket.request.id,
                    ticket.request.sampling.max_tokens,
                    policy,
                )
            )

    def recorded(self, record: RequestRecord) -> None:
        """The sink: the record of the request that is being closed."""
        self._record = record

    def open_requests(self) -> tuple[Request, ...]:
        """Under way, with the tokens that they have so far."""
        return tuple(ticket.as_workload() for ticket in self._open.values())


def live_dispatcher(manager: ReplicaManager, models: Iterable[ServedModel], policy: Policy) -> LiveDispatcher:
    """One that can be put behind a LivePlane."""
    dispatcher: LiveDispatcher | None = None

    def record(made: RequestRecord) -> None:
        if dispatcher is not None:
            dispatcher.recorded(made)

    dispatcher = LiveDispatcher(manager, models, policy, sink=record)
    return dispatcher


class LivePlane:
    """A DataPlane over live replicas. Construct it on the event loop; the port's methods belong to one other thread.

    Times are seconds after the dispatcher's origin.
    """

    def __init__(
        self,
        manager: ReplicaManager,
        dispatcher: LiveDispatcher,
        *,
        arrived: Callable[[tuple[Request, ...]], None],
        served: Callable[[tuple[Served, ...]], None],
        read: Callable[[tuple[Reading, ...]], None] = lambda _readings: None,
        look: Callable[[], None] = lambda: None,
        look_s: float = _LOOK_S,
        read_s: float = _READ_S,
    ) -> None:
        """`arrived` and `served` hear of requests, `read` of the engines' counters, every `read_s`, `look` is called
        now and then, all in the controller's thread. Raises RuntimeError off an event loop."""
        self._loop = asyncio.get_running_loop()
        self._manager = manager
        self._dispatcher = dispatcher
        self._hear_arrived, self._hear_served, self._hear_read, self._look = arrived, served, read, look
        self._look_s, self._read_s = look_s, read_s
        self._arrivals: deque[Request] = deque()
        self._ends: deque[Served] = deque()
        self._readings: deque[Reading] = deque(maxlen=_MOST_READINGS)
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._wake = threading.Event()
        self._given_up = False
        dispatcher.plane = self
        self._loop.call_later(read_s, self._take_readings)

    # -- DataPlane ---------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """The clock."""
        return self._dispatcher.now_s()

    def use(self, policy: Policy, memo: Memo) -> None:
        """Route and order by this policy from now on; requests in flight stay where they are."""
        self._at_loop(lambda: self._dispatcher.use(policy, memo))

    def submit(self, requests: Iterable[Request]) -> None:
        """Raises NotImplementedError for any request: they arrive by the gateway."""
        for request in requests:
            raise NotImplementedError(f"request {request.id}: live requests arrive by the gateway")

    def inject(self, event: ClusterEvent) -> None:
        """Raises NotImplementedError: what happens to real devices cannot be ordered."""
        raise NotImplementedError(
            f"{event.kind} of {event.target}: live hardware takes no orders from a trace"
        )

    def apply(self, plan: Plan) -> Reconfiguration:
        """Begin to carry out a plan. Raises PlanError, having changed nothing, when it cannot be."""
        if self._stop.is_set():
            raise PlanError("the server is stopping: nothing is started any more")
        return self._await(self._manager.apply(plan))

    def run_until(self, t_s: float) -> None:
        """Wait until the clock shows t_s, or `stop` was called."""
        while True:
            self._deliver()
            left_s = t_s - self.now_s
            if left_s <= 0 or self._stop.is_set():
                return
            self._wake.wait(min(left_s, self._look_s))
            self._wake.clear()

    def run_until_idle(self, limit_s: float) -> bool:
        """Wait until nothing is pending; False: the clock shows `limit_s`, or `hurry` was called."""
        while True:
            idle = self._dispatcher.pending == 0 or self._given_up
            self._deliver()
            if idle:
                return True
            left_s = limit_s - self.now_s
            if left_s <= 0 or self._hurry.is_set():
                return False
            self._wake.wait(min(left_s, self._look_s))
            self._wake.clear()

    def snapshot(self) -> PlaneSnapshot:
        """The state now."""
        self._deliver()
        return self._at_loop(self._dispatcher.snapshot)

    def close(self) -> None:
        """Give up on what is unfinished: it is waited for no more. (The gateway ends it; it holds the connections.)"""
        self._deliver()
        self._given_up = True

    # -- beyond the port ---------------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        """`stop` was called."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Let the window that runs end now. From any thread."""
        self._stop.set()
        self._wake.set()

    def hurry(self) -> None:
        """Wait for nothing any more. From any thread."""
        self._hurry.set()
        self.stop()

    def open_requests(self) -> tuple[Request, ...]:
        """Under way, with the tokens that they have so far."""
        return self._at_loop(self._dispatcher.open_requests)

    def note_arrival(self, request: Request) -> None:
        """A request was accepted. On the event loop."""
        self._arrivals.append(request)

    def note_end(self, served: Served) -> None:
        """A request is over. On the event loop."""
        self._ends.append(served)
        if self._stop.is_set():
            self._wake.set()

    # -- details -----------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Hand on what has happened. Arrivals first: nothing ends before it has arrived."""
        ends = _taken(self._ends)
        arrivals = _taken(self._arrivals)
        if arrivals:
            self._hear_arrived(arrivals)
        if ends:
            self._hear_served(ends)
        readings = _taken(self._readings)
        if readings:
            self._hear_read(readings)
        self._look()

    def _take_readings(self) -> None:
        """The latest counters of each replica that serves. On the event loop, which may be slow to be asked."""
        if self._hurry.is_set():
            return
        now_s = self.now_s
        self._readings.extend(Reading(now_s, r.id, r.stats) for r in self._manager.present() if r.ready)
        self._loop.call_later(self._read_s, self._take_readings)

    def _at_loop(self, act: Callable[[], T]) -> T:
        async def run() -> T:
            return act()

        return self._await(run())

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise PlaneClosedError("the event loop of the live plane is closed")
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_S)
        except (CancelledError, TimeoutError) as error:
            raise PlaneClosedError("the event loop of the live plane does not answer") from error


def _taken(queue: deque[T]) -> tuple[T, ...]:
    return tuple(queue.popleft() for _ in range(len(queue)))
