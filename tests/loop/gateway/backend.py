"""A small ServingBackend: deterministic tokens from memory, paced and broken as a test asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from loop.contracts.engine import (
    EngineFinish,
    EngineOutput,
    InvalidRequestError,
    Metric,
    ModelCard,
    ServeRequest,
    Tokenizer,
    TokenLogprob,
    UnknownModelError,
)

ALPHABET = b"abcdefghijklmnopqrstuvwxyz     "


class ByteTokenizer:
    """One token a byte; 256 ends."""

    vocab_size = 257
    eos_token_ids = frozenset({256})

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        if messages[0]["content"] == "refuse me":
            raise ValueError("this template wants another first message")
        return self.encode("".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>")

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(i for i in token_ids if i < 256).decode("utf-8", errors="replace")


def token_at(prompt: Sequence[int], seed: int | None, position: int) -> int:
    """The token that this backend makes, always."""
    mixed = (sum(prompt) * 31 + len(prompt) * 17 + (seed or 0) * 7 + 1) * (position + 3)
    return ALPHABET[(mixed * 2654435761 >> 7) % len(ALPHABET)]


def expected(prompt: str | Sequence[int], count: int, seed: int | None = None) -> str:
    """The text of an answer of `count` tokens."""
    ids = list(prompt.encode()) if isinstance(prompt, str) else list(prompt)
    return bytes(token_at(ids, seed, i) for i in range(count)).decode()


@dataclass
class TinyBackend:
    """Serves `tiny` (context `max_model_len`) and `other`."""

    max_model_len: int = 4096
    token_s: float = 0.0
    """Pause before each token; 0: only a step of the loop."""
    per_output: int = 1
    """Tokens in one output."""
    failure: Exception | None = None
    fail_after: int = 0
    """Outputs before the failure."""
    gate: asyncio.Event | None = None
    """Every answer waits for it after `gate_after` outputs."""
    gate_after: int = 0
    ready: bool = True
    open: set[str] = field(default_factory=set)
    seen: list[ServeRequest] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def models(self) -> tuple[ModelCard, ...]:
        return (
            ModelCard("tiny", self.max_model_len, 1_700_000_000, self.ready),
            ModelCard("other", 64, 1_700_000_001, False),
            ModelCard("dir/with:colon", 64, 1_700_000_001, self.ready),
        )

    def tokenizer(self, model: str) -> Tokenizer:
        if model not in {card.name for card in self.models()}:
            raise UnknownModelError(f"no model {model}")
        return ByteTokenizer()

    async def serve(self, request: ServeRequest) -> AsyncIterator[EngineOutput]:
        assert request.id not in self.open
        self.open.add(request.id)
        self.seen.append(request)
        await self._tell()
        try:
            async for output in self._answer(request):
                yield output
        finally:
            self.open.discard(request.id)
            self.closed.append(request.id)
            task = asyncio.ensure_future(self._tell())
            _KEPT.add(task)
            task.add_done_callback(_KEPT.discard)

    async def _answer(self, request: ServeRequest) -> AsyncIterator[EngineOutput]:
        if request.adapter not in {None, "poet"}:
            raise InvalidRequestError(f"unknown adapter {request.adapter}")
        sampling, prompt = request.sampling, request.prompt_token_ids
        tokens = [token_at(prompt, sampling.seed, i) for i in range(sampling.max_tokens)]
        text, finish, reason = bytes(tokens).decode(), EngineFinish.LENGTH, None
        for stop in sampling.stop:
            at = text.find(stop)
            if at >= 0:
                text, finish, reason = text[:at], EngineFinish.STOP, stop
        tokens = tokens[: len(text)] or tokens[:1]
        for number, start in enumerate(range(0, len(tokens), self.per_output)):
            await asyncio.sleep(self.token_s)
            if self.failure is not None and number == self.fail_after:
                raise self.failure
            if self.gate is not None and number == self.gate_after:
                await self.gate.wait()
            piece = tokens[start : start + self.per_output]
            last = start + self.per_output >= len(tokens)
            yield EngineOutput(
                request.id,
                tuple(piece),
                text[start : start + self.per_output],
                _logprobs(piece, sampling.logprobs),
                finish if last else None,
                reason if last else None,
                cached_tokens=min(4, len(prompt)),
            )

    def metrics(self) -> Iterable[Metric]:
        yield Metric("tiny_open_requests", "gauge", "Requests\nnow.", len(self.open), (("model", 'a"b\\c'),))
        yield Metric("tiny_open_requests", "gauge", "Requests\nnow.", 2.5, (("model", "other"),))

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def wait_open(self, count: int) -> None:
        """Until exactly so many requests are being served."""
        async with asyncio.timeout(120), self.changed:
            await self.changed.wait_for(lambda: len(self.open) == count)


_KEPT: set[asyncio.Task[None]] = set()


def _logprobs(tokens: Sequence[int], count: int | None) -> tuple[TokenLogprob, ...]:
    if count is None:
        return ()
    return tuple(TokenLogprob(t, -0.5, tuple((t + i, -0.5 - i) for i in range(count))) for t in tokens)
