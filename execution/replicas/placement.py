"""Where a request goes: what the policy is shown, what it answers, and how long a request waits for a replica."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence

from execution.replicas.desk import PolicyDesk
from execution.replicas.load import Flight
from execution.replicas.manager import ReplicaManager
from execution.replicas.options import DispatcherOptions
from execution.replicas.prefixes import PrefixRecord
from execution.replicas.replica import Replica
from execution.replicas.ticket import Ticket
from execution.twin.predictor import OutputPredictor
from loop.contracts import (
    REJECT,
    InvalidRequestError,
    RejectedError,
    RequestView,
    UnavailableError,
)

_MIN_RETRY_AFTER_S, _MAX_RETRY_AFTER_S = 1.0, 30.0


class Placement:
    """Asks the policy's desk for one request after another."""

    def __init__(
        self,
        manager: ReplicaManager,
        desk: PolicyDesk,
        models: Iterable[str],
        *,
        options: DispatcherOptions,
        origin_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.predictor = OutputPredictor(options.prior_output_tokens)
        self._manager = manager
        self._desk = desk
        self._options = options
        self._origin_s = origin_s
        self._clock = clock
        self._prefixes = {name: PrefixRecord() for name in models}
        self._seen_version = -1

    async def place(self, ticket: Ticket) -> tuple[Replica, float, Flight]:
        """(replica, priority in its queue, its share of the replica's load). Waits while there is no replica and one
        is to come. Raises ServeError."""
        while True:
            ready = self._manager.serving(ticket.request.model)
            able: Sequence[Replica] = ready
            if ticket.avoided or ticket.refused:
                able = [r for r in ready if r.id not in ticket.avoided and r.id not in ticket.refused]
            if able:
                return self._choose(ticket, able)
            await self._wait(ticket, ready)

    def computed(self, ticket: Ticket, replica: Replica) -> None:
        """A replica has prefilled this prompt."""
        self._prefixes[ticket.request.model].add(replica, ticket.hashes)

    def _choose(self, ticket: Ticket, able: Sequence[Replica]) -> tuple[Replica, float, Flight]:
        if self._seen_version != self._manager.version:
            self._forget_gone()
        request, done = ticket.request, len(ticket.token_ids)
        input_tokens = ticket.input_tokens + done
        predicted = max(1.0, self.predictor.predict(request.model, ticket.input_tokens) - done)
        cached = self._prefixes[request.model].cached(ticket.hashes, input_tokens, able)
        clock_s = self._clock()
        now_s = clock_s - self._origin_s
        view = RequestView(
            ticket.number,
            request.model,
            ticket.arrival_s,
            now_s,
            input_tokens,
            predicted,
            request.tier,
            ticket.retries,
            cached,
        )
        index, priority = self._desk.decide(view, tuple([r.view(clock_s) for r in able]))
        if priority == REJECT:
            if not ticket.retries and not done:
                raise RejectedError("the policy does not admit this request now", self.retry_after_s(able))
            priority = ticket.arrival_s  # it was admitted, and has lost its replica since
        replica = able[index]
        ticket.sent_to(replica.id, now_s)
        uncached_tokens = max(1, input_tokens - cached[index]) if cached else input_tokens
        return replica, priority, Flight(input_tokens, uncached_tokens, predicted)

    async def _wait(self, ticket: Ticket, ready: Sequence[Replica]) -> None:
        """Until it is worth another look. Raises ServeError where that is in vain."""
        request, manager = ticket.request, self._manager
        if ready and all(r.id in ticket.refused for r in ready):
            raise InvalidRequestError(next(iter(ticket.refused.values())))
        if not ready and not manager.coming(request.model):
            raise UnavailableError(f"no replica serves {request.model}, and none is to come")
        if ready and not ticket.retries:
            raise RejectedError(
                f"all {len(ready)} replicas of {request.model} have full queues", self.retry_after_s(ready)
            )
        pause_s = self._options.busy_pause_s if ready else None
        ticket.held = True
        try:
            async with asyncio.timeout_at(request.deadline_s):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await manager.change.wait()
        except TimeoutError as error:
            raise UnavailableError(f"no replica of {request.model} was free before the deadline") from error
        finally:
            ticket.held = False
            ticket.avoided.clear()

    def retry_after_s(self, replicas: Sequence[Replica]) -> float:
        """Until the least loaded one should have done what it holds."""
        views = [replica.view(self._clock()) for replica in replicas]
        least_s = min(
            v.waiting_tokens / v.prefill_tokens_per_s + v.outstanding_tokens / v.decode_tokens_per_s
            for v in views
        )
        return min(max(least_s, _MIN_RETRY_AFTER_S), _MAX_RETRY_AFTER_S)

    def _forget_gone(self) -> None:
        self._seen_version = self._manager.version
        present = frozenset(replica.id for replica in self._manager.present())
        for prefixes in self._prefixes.values():
            prefixes.keep_only(present)
