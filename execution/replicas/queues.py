"""Requests that wait in the engines' queues, and taking them back when there is a better place for them."""

from __future__ import annotations

import asyncio

import structlog

from execution.replicas.manager import ReplicaManager
from execution.replicas.replica import Replica
from execution.replicas.ticket import Ticket
from loop.contracts import EngineError

_log = structlog.get_logger(__name__)


class Queues:
    """Of all replicas. Taking back is a cancel at the engine: its last output then says so, and the request is sent
    anew; what it had begun after all is not lost."""

    def __init__(self, manager: ReplicaManager) -> None:
        self.moves = 0
        self._manager = manager
        self._queued: dict[int, dict[str, Ticket]] = {}
        """Replica -> engine's id of a request without a token yet -> its ticket, in order of sending."""
        self._tasks: set[asyncio.Task[None]] = set()

    def enter(self, replica: Replica, engine_id: str, ticket: Ticket) -> None:
        """A request is sent."""
        self._queued.setdefault(replica.id, {})[engine_id] = ticket

    def leave(self, replica: Replica, engine_id: str) -> None:
        """It has begun, or is gone; idempotent."""
        queue = self._queued.get(replica.id)
        if queue is not None and queue.pop(engine_id, None) is not None and not queue:
            del self._queued[replica.id]

    def rebalance(self, changed: Replica) -> None:
        """A replica has become ready, or is to go: what waits in the queues of its model finds a place anew."""
        serving = self._manager.serving(changed.spec.model)
        if changed.ready:
            for replica in serving:
                if replica is not changed:
                    self._take_back(replica)
        elif serving:  # else there is nowhere to go: it is finished where it is
            self._take_back(changed)

    def _take_back(self, replica: Replica) -> None:
        """Those that came last and cannot be running yet."""
        _, waiting = replica.counts()
        queue = self._queued.get(replica.id)
        if not waiting or not queue:
            return
        for engine_id, ticket in list(queue.items())[-waiting:]:
            ticket.moving = True
            self.moves += 1
            task = asyncio.create_task(replica.engine.cancel(engine_id))
            self._tasks.add(task)
            task.add_done_callback(self._asked)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(task.exception(), EngineError):
            _log.debug("request not taken back", error=str(task.exception()))  # its stream says so too
