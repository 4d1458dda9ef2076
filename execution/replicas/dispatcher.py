"""Sends each request to the replica that the current policy names, and sees it through to its last token.

A request whose replica dies goes on elsewhere with the tokens that it has: the client sees each of them once. Requests
that no replica can take now wait here, as long as one is to come. Each request leaves one record.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import cast

import structlog

from execution.replicas import census
from execution.replicas.continuation import Continuation
from execution.replicas.desk import PolicyDesk, warm_up
from execution.replicas.load import Flight
from execution.replicas.manager import ReplicaManager
from execution.replicas.metrics import series
from execution.replicas.options import DispatcherOptions
from execution.replicas.placement import Placement
from execution.replicas.prefixes import block_hashes
from execution.replicas.queues import Queues
from execution.replicas.replica import Replica
from execution.replicas.ticket import Ticket
from loop.contracts import (
    Backlog,
    DeadlineError,
    EngineBusyError,
    EngineCrashedError,
    EngineDrainingError,
    EngineError,
    EngineFinish,
    EngineOutput,
    EngineRequest,
    EngineRequestError,
    Finish,
    InvalidRequestError,
    Memo,
    Metric,
    ModelCard,
    PlaneSnapshot,
    Policy,
    RecordSink,
    RejectedError,
    ReplicaView,
    Request,
    Resources,
    ServeError,
    ServeRequest,
    Tokenizer,
    UnavailableError,
    UnknownModelError,
)

__all__ = ["Dispatcher", "DispatcherOptions", "ServedModel"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that may be asked for, whether it has a replica or not."""

    name: str
    tokenizer: Tokenizer
    max_model_len: int
    """Prompt and answer, tokens."""
    created: int = 0
    """Unix seconds."""


class Dispatcher:
    """Models behind replicas, steered by the current policy. Implements ServingBackend.

    `sink` is called with the record of each request that was accepted, `workload` with each finished request as the
    twin replays it; both from the event loop, so they must not block.
    """

    def __init__(
        self,
        manager: ReplicaManager,
        models: Iterable[ServedModel],
        policy: Policy,
        memo: Memo | None = None,
        *,
        sink: RecordSink | None = None,
        workload: Callable[[Request], None] | None = None,
        options: DispatcherOptions | None = None,
        origin_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manager = manager
        self._models = {model.name: model for model in models}
        self._sink = sink
        self._workload = workload
        self._options = options or DispatcherOptions()
        self._clock = clock
        self.origin_s = clock() if origin_s is None else origin_s
        """Zero of the times in records and views."""
        self.desk = PolicyDesk(policy, Memo() if memo is None else memo)
        """Who decides, with counts of faults, and the pauses of swaps."""
        self._placement = Placement(
            manager, self.desk, self._models, options=self._options, origin_s=self.origin_s, clock=clock
        )
        self._queues = Queues(manager)
        if self._options.rebalance:
            manager.on_stage.append(self._queues.rebalance)
        self._open: dict[int, Ticket] = {}
        self._next_number = 0
        self._shut = False
        self._empty = asyncio.Event()
        self.outcomes: dict[tuple[str, str], int] = {}
        """(model, how it ended) -> requests."""
        self.retries = 0

    # -- ServingBackend ----------------------------------------------------------------------------------

    def models(self) -> tuple[ModelCard, ...]:
        """All that are served."""
        return tuple(
            ModelCard(m.name, m.max_model_len, m.created, bool(self._manager.serving(m.name)))
            for m in self._models.values()
        )

    def tokenizer(self, model: str) -> Tokenizer:
        """Raises UnknownModelError."""
        return self._model(model).tokenizer

    async def serve(self, request: ServeRequest) -> AsyncGenerator[EngineOutput, None]:
        """Route, queue, stream; closing the iterator cancels. Raises ServeError."""
        ticket = self._accept(request)
        finish = Finish.CANCELLED
        last: EngineOutput | None = None
        try:
            while last is None:
                replica, priority, flight = await self._placement.place(ticket)
                question = _question(ticket, priority, self.origin_s)
                outputs = cast(AsyncGenerator[EngineOutput, None], replica.engine.generate(question))
                self._sent(replica, flight, question.id, ticket)
                try:
                    while last is None:
                        output = await self._next(ticket, outputs)
                        told = self._told(ticket, replica, flight, question.id, output)
                        if told.finish is not None:
                            last = told
                        elif told.token_ids or told.text:
                            yield told
                        if output.finish is not None:
                            break  # the end, or taken back from the queue: then it is sent anew
                except EngineError as error:
                    last = self._failed(ticket, replica, error)
                finally:
                    self._left(replica, flight, question.id)
                    await outputs.aclose()
            finish = Finish.OK if last.finish is not EngineFinish.CANCELLED else Finish.CANCELLED
        except ServeError as error:
            finish = _finish_of(error)
            raise
        except Exception:
            finish = Finish.LOST
            raise
        finally:
            self._close(ticket, finish)
        yield last

    def metrics(self) -> Iterable[Metric]:
        """Of engines, replicas and policy."""
        return series(self, self._manager, self.desk)

    # -- steering ----------------------------------------------------------------------------------------

    def use(self, policy: Policy, memo: Memo) -> None:
        """Decide by this policy from the next request on; what is under way stays where it is."""
        self.desk.use(policy, memo)

    async def adopt(self, policy: Policy, memo: Memo) -> None:
        """`use`, once the policy answers quickly; requests go on meanwhile."""
        await asyncio.to_thread(warm_up, policy, self.replica_views())
        self.use(policy, memo)

    def now_s(self) -> float:
        """Seconds after the origin."""
        return self._clock() - self.origin_s

    def snapshot(self) -> PlaneSnapshot:
        """The state now."""
        return census.snapshot(self.now_s(), self.origin_s, self.backlog(), self._manager)

    def replica_views(self) -> tuple[ReplicaView, ...]:
        """Replicas of the plan, starting ones included, as a policy sees them."""
        now_s = self._clock()
        return tuple(replica.view(now_s) for replica in self._manager.planned())

    def backlog(self) -> tuple[Backlog, ...]:
        """Per model: accepted and not finished."""
        return census.backlog(self._models, self._open.values(), self._manager)

    def resources(self) -> Resources:
        """Spent by replicas so far."""
        return self._manager.resources()

    @property
    def pending(self) -> int:
        """Requests accepted and not finished."""
        return len(self._open)

    @property
    def moves(self) -> int:
        """Requests taken back from a queue, to be sent anew."""
        return self._queues.moves

    def shut(self) -> None:
        """Accept nothing more (UnavailableError)."""
        self._shut = True

    async def idle(self) -> None:
        """Return when nothing is pending."""
        while self._open:
            self._empty.clear()
            await self._empty.wait()

    # -- in and out --------------------------------------------------------------------------------------

    def _accept(self, request: ServeRequest) -> Ticket:
        model = self._model(request.model)
        if self._shut:
            raise UnavailableError("the server is shutting down")
        prompt = len(request.prompt_token_ids)
        if not prompt:
            raise InvalidRequestError("the prompt is empty: at least one token is needed")
        if prompt >= model.max_model_len:
            raise InvalidRequestError(
                f"the prompt has {prompt} tokens; {model.name} holds {model.max_model_len}, answer included"
            )
        if request.sampling.max_tokens < 1:
            raise InvalidRequestError(f"max_tokens must be at least 1, not {request.sampling.max_tokens}")
        ticket = Ticket(request, self._next_number, self.now_s(), block_hashes(request.prompt_token_ids))
        self._next_number += 1
        self._open[ticket.number] = ticket
        self._meter_pending()
        return ticket

    def _close(self, ticket: Ticket, finish: Finish) -> None:
        ticket.deadline.close()
        del self._open[ticket.number]
        if not self._open:
            self._empty.set()
        self._meter_pending()
        model = ticket.request.model
        self.outcomes[model, finish.value] = self.outcomes.get((model, finish.value), 0) + 1
        if finish is Finish.OK:
            if ticket.last_token_s < 0.0:  # an answer without a token
                ticket.first_token_s = ticket.last_token_s = self.now_s()
            output_tokens = max(1, len(ticket.token_ids))
            self._placement.predictor.learn(model, ticket.input_tokens, output_tokens)
        try:
            if self._workload is not None and finish is Finish.OK:
                self._workload(ticket.as_workload())
            if self._sink is not None:
                self._sink(ticket.record(finish))
        except Exception as error:  # noqa: BLE001 - who listens must not harm who is answered
            _log.error("record not taken", request=ticket.request.id, exc_info=error)

    def _model(self, name: str) -> ServedModel:
        found = self._models.get(name)
        if found is None:
            raise UnknownModelError(f"no model {name!r}; there are {', '.join(self._models)}")
        return found

    # -- one replica -------------------------------------------------------------------------------------

    def _sent(self, replica: Replica, flight: Flight, engine_id: str, ticket: Ticket) -> None:
        if not replica.load.in_flight:
            self._manager.meter.touch(self._clock())
            self._manager.meter.busy += 1
        replica.enter(flight)
        self._queues.enter(replica, engine_id, ticket)

    def _left(self, replica: Replica, flight: Flight, engine_id: str) -> None:
        self._queues.leave(replica, engine_id)
        replica.leave(flight)
        if not replica.load.in_flight:
            self._manager.meter.touch(self._clock())
            self._manager.meter.busy -= 1

    async def _next(self, ticket: Ticket, outputs: AsyncIterator[EngineOutput]) -> EngineOutput:
        try:
            with ticket.deadline:
                return await anext(outputs)
        except StopAsyncIteration:
            raise EngineCrashedError("the engine ended an answer that was not finished") from None
        except TimeoutError:
            raise DeadlineError(
                f"not done by its deadline: {len(ticket.token_ids)} of at most "
                f"{ticket.request.sampling.max_tokens} tokens were made"
            ) from None

    def _told(
        self, ticket: Ticket, replica: Replica, flight: Flight, engine_id: str, output: EngineOutput
    ) -> EngineOutput:
        """What the client is told."""
        ticket.took(output, self.now_s(), self.origin_s)
        if output.token_ids:
            if not flight.started:
                self._queues.leave(replica, engine_id)
                self._placement.computed(ticket, replica)
            replica.progress(flight, len(output.token_ids))
        finish, text = output.finish, output.text
        if finish is EngineFinish.CANCELLED and ticket.moving:
            finish = None
            self._continue(ticket, new_tokens=len(output.token_ids))
        if ticket.continuation is not None:
            text = ticket.continuation.push(output.token_ids, last=finish is not None)
        if text:
            ticket.sent.append(text)
        return EngineOutput(
            ticket.request.id,
            output.token_ids,
            text,
            output.logprobs,
            finish,
            output.stop_reason,
            ticket.cached_tokens,
            output.scheduled_s,
        )

    def _failed(self, ticket: Ticket, replica: Replica, error: EngineError) -> EngineOutput | None:
        """The replica gives no (further) answer: decide how to go on. Not None: only the end was missing."""
        if isinstance(error, EngineBusyError | EngineDrainingError):
            ticket.avoided.add(replica.id)
            return None
        if isinstance(error, EngineRequestError):
            ticket.refused[replica.id] = str(error)
            return None
        if isinstance(error, EngineCrashedError):
            self._manager.lost(replica, str(error))
        else:
            ticket.avoided.add(replica.id)
        ticket.retries += 1
        self.retries += 1
        ticket.refused.clear()
        _log.debug(
            "request lost its replica", request=ticket.request.id, replica=replica.id, error=str(error)
        )
        self._continue(ticket)
        rest = ticket.continuation
        if rest is not None and (finish := rest.finish(ticket.token_ids)) is not None:
            text = rest.push((), last=True)
            return EngineOutput(ticket.request.id, (), text, finish=finish, stop_reason=rest.stop_reason)
        if ticket.retries > self._options.max_retries:
            raise UnavailableError(f"lost its replica {ticket.retries} times, the last time: {error}")
        return None

    def _continue(self, ticket: Ticket, new_tokens: int = 0) -> None:
        """From now on its text is made here; the latest `new_tokens` are still to be pushed."""
        if ticket.continuation is None and ticket.token_ids:
            model, sampling = self._models[ticket.request.model], ticket.request.sampling
            ticket.continuation = Continuation(
                model.tokenizer,
                sampling,
                ticket.token_ids[: len(ticket.token_ids) - new_tokens],
                "".join(ticket.sent),
                min(sampling.max_tokens, model.max_model_len - ticket.input_tokens),
            )

    def _meter_pending(self) -> None:
        meter = self._manager.meter
        meter.touch(self._clock())
        meter.pending = len(self._open)


def _question(ticket: Ticket, priority: float, origin_s: float) -> EngineRequest:
    request, done = ticket.request, ticket.token_ids
    return EngineRequest(
        id=f"{ticket.number}.{ticket.attempts}:{request.id}",
        prompt_token_ids=(*request.prompt_token_ids, *done) if done else request.prompt_token_ids,
        sampling=request.sampling,
        priority=priority,
        arrival_s=origin_s + ticket.arrival_s,
        generated=len(done),
        adapter=request.adapter,
    )


def _finish_of(error: ServeError) -> Finish:
    if isinstance(error, RejectedError):
        return Finish.REJECTED
    return Finish.INFEASIBLE if isinstance(error, InvalidRequestError) else Finish.LOST
