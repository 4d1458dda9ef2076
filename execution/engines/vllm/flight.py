"""One request on its way through vLLM: what comes back is tokens; text, stop strings and the end are made here."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import NamedTuple

from execution.engines.tokenizer import Detokeniser
from loop.contracts import (
    EngineBusyError,
    EngineFinish,
    EngineOutput,
    EngineRequest,
    Tokenizer,
    TokenLogprob,
)

REJECTED = "rejected by policy"
"""How the scheduler plug-in begins the stop reason of a request that the policy refused."""


class Chunk(NamedTuple):
    """What vLLM gave since the last one."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None
    """vLLM's word: `stop`, `length`, `abort`."""
    stop_reason: str | None = None
    cached_tokens: int = 0
    scheduled_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it goes to vLLM."""

    id: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    """Still to come."""
    stop_token_ids: tuple[int, ...]
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    """For vLLM's own sampler; None: it chooses one, or SeededSampler draws."""
    logprobs: int | None
    extra: dict[str, str | int | float]
    """For the plug-ins: names begin with `autopoiesis_`."""
    adapter: str | None


class Flight:
    """Where a request's chunks arrive, and what becomes of them. Belongs to the event loop."""

    def __init__(self, request: EngineRequest, tokenizer: Tokenizer) -> None:
        self.request = request
        self.started = False
        """Some of it has come back: it does not wait any more."""
        self._arrived: asyncio.Queue[Chunk | BaseException | None] = asyncio.Queue()
        self._eos = frozenset() if request.sampling.ignore_eos else tokenizer.eos_token_ids
        at = len(request.prompt_token_ids) - request.generated
        self._prior = request.prompt_token_ids[at:]
        self._text = Detokeniser(tokenizer, request.sampling.stop, self._prior)
        self._cached_tokens = 0
        self._scheduled_s = 0.0
        self._made = 0

    # -- arrivals ----------------------------------------------------------------------------------------

    def put(self, item: Chunk | BaseException | None) -> None:
        """A chunk, the error that ended the request, or None: it was cancelled."""
        self.started = True
        self._arrived.put_nowait(item)

    async def next(self) -> EngineOutput:
        """All that has come since the last call; waits for something.

        Raises what `put` was given, after the tokens that came before it.
        """
        items = [await self._arrived.get()]
        while not self._arrived.empty():
            items.append(self._arrived.get_nowait())
        tokens: list[int] = []
        logprobs: list[TokenLogprob] = []
        text = ""
        for item in items:
            if isinstance(item, BaseException):
                if not tokens:
                    raise item
                self._arrived.put_nowait(item)
                break
            if item is None:
                return self._output(tokens, text, logprobs, EngineFinish.CANCELLED)
            finish, piece, count = self._take(item)
            text += piece
            tokens += item.token_ids[:count]
            logprobs += item.logprobs[:count]
            if finish is not None:
                return self._output(tokens, text, logprobs, finish)
        return self._output(tokens, text, logprobs, None)

    # -- the end -----------------------------------------------------------------------------------------

    def over(self, most_tokens: int) -> EngineOutput | None:
        """The last output of an answer that was complete when its replica was lost; None: it goes on."""
        if self._text.stop_reason is not None:
            return self._output([], "", [], EngineFinish.STOP)
        if self._prior and self._prior[-1] in self._eos:
            return self._output([], self._text.flush(), [], EngineFinish.STOP)
        if self.request.generated >= most_tokens:
            return self._output([], self._text.flush(), [], EngineFinish.LENGTH)
        return None

    def _take(self, chunk: Chunk) -> tuple[EngineFinish | None, str, int]:
        """(how it ends here, text, tokens that belong to the answer)."""
        self._cached_tokens = chunk.cached_tokens or self._cached_tokens
        self._scheduled_s = chunk.scheduled_s or self._scheduled_s
        text = ""
        for count, token_id in enumerate(chunk.token_ids, 1):
            self._made += 1
            if token_id in self._eos:
                return EngineFinish.STOP, text + self._text.flush(), count
            text += self._text.push(token_id)
            if self._text.stop_reason is not None:
                return EngineFinish.STOP, text, count
        every = len(chunk.token_ids)
        if chunk.finish is None:
            return None, text, every
        if chunk.finish == "abort":
            reason = chunk.stop_reason or ""
            if reason.startswith(REJECTED) and not self._made:
                raise EngineBusyError(f"request {self.request.id} was {reason}")
            return EngineFinish.CANCELLED, text, every
        finish = EngineFinish.STOP if chunk.finish == "stop" else EngineFinish.LENGTH
        return finish, text + self._text.flush(), every

    def _output(
        self, tokens: list[int], text: str, logprobs: list[TokenLogprob], finish: EngineFinish | None
    ) -> EngineOutput:
        return EngineOutput(
            self.request.id,
            tuple(tokens),
            text,
            tuple(logprobs),
            finish,
            self._text.stop_reason if finish is EngineFinish.STOP else None,
            self._cached_tokens,
            self._scheduled_s,
        )
