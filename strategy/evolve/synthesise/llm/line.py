"""The line to the endpoint: one request after another until one is answered, within budget and patience."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from loop.contracts import Exchange
from strategy.evolve.synthesise.llm.budget import Ledger, Reservation, TokenEstimator
from strategy.evolve.synthesise.llm.client import ChatClient, Message
from strategy.evolve.synthesise.llm.config import LlmConfig, LlmModel
from strategy.evolve.synthesise.llm.reply import ChatFault, Reply
from strategy.evolve.synthesise.llm.retry import Breaker, backoff_s

_log = structlog.get_logger(__name__)
_MOST_CLIENT_ERRORS = 3
"""Requests in a row that a model may refuse as malformed before it is set aside."""
_CONTEXT = re.compile(
    r"context (?:length|window|size)|max_tokens must be at least|too many tokens", re.IGNORECASE
)
_CONTEXT_TOKENS = re.compile(r"(?:length|window|size)\D{0,40}?(\d{3,9})", re.IGNORECASE)
_HINTS = {
    "401": "check the API key",
    "403": "the API key may not use this model",
    "404": "check the base URL (it often ends in /v1) and the model's name",
}


@dataclass(slots=True)
class ModelState:
    """A model and how it stands."""

    model: LlmModel
    prompt_limit: int
    """Tokens; lowered when the endpoint says that its context is shorter."""
    output_limit: int
    """Tokens."""
    set_aside: str = ""
    """Why it is not asked any more; empty: it is."""
    not_before_s: float = float("-inf")
    """On the clock: the endpoint asked to be left alone until then."""
    client_errors: int = 0
    """In a row."""
    fruitless: int = 0
    """Questions in a row that were answered without giving a candidate."""


@dataclass(slots=True)
class Tally:
    """What one question has taken so far."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that was answered, its bill still open."""

    reply: Reply
    reservation: Reservation
    messages: tuple[Message, ...]
    wall_s: float


class Line:
    """Sends requests, pays for them, notes each. Lives in one asyncio loop.

    After `deadline_s` on the clock nothing is sent again.
    """

    def __init__(
        self,
        config: LlmConfig,
        client: ChatClient,
        *,
        ledger: Ledger,
        rng: random.Random,
        clock: Callable[[], float],
        note: Callable[[Exchange], None],
    ) -> None:
        self._config = config
        self._client = client
        self._ledger = ledger
        self._rng = rng
        self._clock = clock
        self._note = note
        self.estimator = TokenEstimator()
        self.breaker = Breaker(config.breaker_failures, config.breaker_pause_s, config.breaker_cap_s, clock)
        self.deadline_s = float("inf")
        self.last_fault = ""

    def reserve(self, state: ModelState, messages: Sequence[Message]) -> Reservation | None:
        """Put the worst case of a request aside; None: it does not fit into the budget."""
        return self._ledger.reserve(state.model, self._tokens(messages), state.output_limit)

    def shortage(self, state: ModelState, messages: Sequence[Message]) -> str:
        """Why it does not fit, in words."""
        return self._ledger.shortage(Reservation(state.model, self._tokens(messages), state.output_limit))

    async def send(
        self, state: ModelState, messages: Sequence[Message], reservation: Reservation | None, tally: Tally
    ) -> Answered | None:
        """Send until there is an answer; None: given up, for a reason that was noted. The caller settles what
        was answered."""
        sent = tuple(messages)
        for attempt in range(self._config.retries + 1):
            if attempt and self.breaker.opens_in_s > 0:
                return None
            reservation = reservation or self.reserve(state, sent)
            if reservation is None:
                return None
            began_s = self._clock()
            try:
                reply = await self._client.complete(state.model.name, sent, reservation.completion_tokens)
            except ChatFault as fault:
                self._failed(reservation, sent, fault, self._clock() - began_s, tally)
                pause_s = self._pause_s(state, reservation, fault, attempt)
            except asyncio.CancelledError:
                closed = ChatFault("cancelled", "given up: the synthesiser was closed", may_be_charged=True)
                self._failed(reservation, sent, closed, self._clock() - began_s, tally)
                raise
            else:
                self.breaker.success()
                self.last_fault = ""
                state.client_errors = 0
                return Answered(reply, reservation, sent, self._clock() - began_s)
            if pause_s is None:
                return None
            reservation = None
            await asyncio.sleep(pause_s)
        return None

    def settle(self, answered: Answered, outcome: str, detail: str, digest: str | None, tally: Tally) -> None:
        """Pay for an answer and note what came of it. What the endpoint did not count is estimated."""
        reply, reservation = answered.reply, answered.reservation
        prompt_tokens, completion_tokens = reply.prompt_tokens, reply.completion_tokens
        if prompt_tokens is None:
            prompt_tokens = reservation.prompt_tokens
        else:
            self.estimator.learn(_joined(answered.messages), prompt_tokens)
        if completion_tokens is None:
            completion_tokens = self.estimator.tokens(reply.text)
        self._bill(
            reservation,
            answered.messages,
            Exchange(
                reservation.model.name,
                "",
                reply.text or reply.refusal,
                outcome,
                self._client.redact(detail),
                digest,
                prompt_tokens,
                completion_tokens,
                wall_s=answered.wall_s,
            ),
            tally,
        )

    def _failed(
        self,
        reservation: Reservation,
        messages: tuple[Message, ...],
        fault: ChatFault,
        wall_s: float,
        tally: Tally,
    ) -> None:
        """Note a request without an answer. One that the endpoint may have worked on counts in full."""
        name = reservation.model.name
        charged = (
            (reservation.prompt_tokens, reservation.completion_tokens) if fault.may_be_charged else (0, 0)
        )
        exchange = Exchange(name, "", "", fault.outcome, fault.detail, None, *charged, wall_s=wall_s)
        self._bill(reservation, messages, exchange, tally)
        if fault.outcome == "cancelled":
            return
        self.last_fault = f"{fault.outcome}: {fault.detail}"
        if fault.down:
            self.breaker.failure()
        else:
            self.breaker.success()
        _log.debug("no answer", model=name, outcome=fault.outcome, detail=fault.detail)

    def _bill(
        self, reservation: Reservation, messages: Sequence[Message], exchange: Exchange, tally: Tally
    ) -> None:
        usd = self._ledger.settle(
            reservation,
            exchange.prompt_tokens,
            exchange.completion_tokens,
            failed=exchange.outcome != "candidate",
        )
        tally.prompt_tokens += exchange.prompt_tokens
        tally.completion_tokens += exchange.completion_tokens
        prompt = self._client.redact(_joined(messages))
        self._note(replace(exchange, prompt=prompt, usd=usd))

    def _pause_s(
        self, state: ModelState, reservation: Reservation, fault: ChatFault, attempt: int
    ) -> float | None:
        """Seconds until the next attempt; None: there is none."""
        if fault.permanent:
            self._set_aside(state, fault.detail)
            return None
        if fault.outcome == "refusal":
            return None
        if fault.outcome == "client-error":
            return self._after_client_error(state, reservation, fault)
        pause_s = backoff_s(attempt, self._config.backoff_s, self._config.backoff_cap_s, self._rng)
        if fault.wait_s is not None:
            pause_s = max(fault.wait_s, min(pause_s, self._config.backoff_s))
        if fault.outcome == "rate-limit":
            state.not_before_s = max(state.not_before_s, self._clock() + pause_s)
        too_long = pause_s > self._config.backoff_cap_s
        if too_long and fault.wait_s is not None:
            state.not_before_s = max(state.not_before_s, self._clock() + pause_s)
        if too_long or self.breaker.is_open or attempt == self._config.retries:
            return None
        return pause_s if self._clock() + pause_s < self.deadline_s else None

    def _after_client_error(
        self, state: ModelState, reservation: Reservation, fault: ChatFault
    ) -> float | None:
        """The request itself was refused: another form of it is tried at once, a shorter one next time."""
        if fault.wait_s is not None:
            return fault.wait_s
        is_context = bool(_CONTEXT.search(fault.detail))
        if is_context and (
            reservation.prompt_tokens > state.prompt_limit
            or reservation.completion_tokens > state.output_limit
        ):
            return None  # of a request from before the limits were lowered, or a follow-up
        state.client_errors += 1
        if state.client_errors >= _MOST_CLIENT_ERRORS:
            self._set_aside(state, f"{state.client_errors} requests in a row were refused; {fault.detail}")
        elif is_context:
            _shorten(state, fault.detail)
        return None

    def _set_aside(self, state: ModelState, reason: str) -> None:
        if state.set_aside:
            return
        status = re.match(r"HTTP (\d+)", reason)
        hint = _HINTS.get(status[1], "") if status else ""
        state.set_aside = f"{reason} ({hint})" if hint else reason
        _log.warning("model set aside", model=state.model.name, reason=state.set_aside)

    def _tokens(self, messages: Sequence[Message]) -> int:
        return self.estimator.tokens(_joined(messages), len(messages))


def _shorten(state: ModelState, detail: str) -> None:
    """Fit the next question into the context that the endpoint named, or into less than before."""
    named = _CONTEXT_TOKENS.search(detail)
    context = int(named[1]) if named else int(0.7 * (state.prompt_limit + state.output_limit))
    state.output_limit = max(1, min(state.output_limit, context // 3))
    state.prompt_limit = max(1, min(int(0.9 * state.prompt_limit), context - state.output_limit - 64))


def _joined(messages: Sequence[Message]) -> str:
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)
