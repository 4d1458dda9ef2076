"""One request inside the engine: its tokens, how many of them are in KV, and what ends it."""

from __future__ import annotations

from typing import Protocol

from execution.engines.tokenizer import Detokeniser
from execution.engines.torch.sampler import seed_of
from loop.contracts.engine import EngineFinish, EngineRequest, Tokenizer, TokenLogprob


class Sink(Protocol):
    """Who reads the answer. Called by the step thread."""

    def put(
        self,
        sequence: Sequence,
        token: int | None,
        text: str,
        logprob: TokenLogprob | None,
        finish: EngineFinish | None,
    ) -> None:
        """One more token, or the end."""

    def fail(self, sequence: Sequence, message: str) -> None:
        """An answer that cannot be made, now or later."""


class Sequence:
    """A request that waits or runs. Belongs to the step thread once it was handed over."""

    __slots__ = (
        "blocks",
        "cached",
        "computed",
        "digests",
        "ended",
        "generated",
        "key",
        "lane",
        "limit",
        "request",
        "sampling",
        "scheduled_s",
        "seed",
        "text",
        "tokens",
        "touched",
        "waiting",
    )

    def __init__(
        self, request: EngineRequest, order: int, tokenizer: Tokenizer, max_model_len: int, engine_seed: int
    ) -> None:
        self.request = request
        self.sampling = request.sampling
        self.key = (request.priority, request.arrival_s, order)
        """Order in the queue, and the last to be preempted."""
        self.tokens = list(request.prompt_token_ids)
        self.generated = request.generated
        """Tokens of the answer so far, those of a lost replica included."""
        prompt = len(self.tokens) - self.generated
        self.limit = min(self.sampling.max_tokens, max_model_len - prompt)
        self.seed = seed_of(engine_seed, request.id) if self.sampling.seed is None else self.sampling.seed
        self.text = Detokeniser(tokenizer, self.sampling.stop, self.tokens[prompt:])
        self.computed = 0
        """Tokens whose KV is in the lane."""
        self.lane = -1
        self.blocks = 0
        self.digests: list[bytes] = []
        self.cached = 0
        """Prompt tokens found in the prefix store when it first ran."""
        self.scheduled_s = 0.0
        self.touched = 0
        """The step that it was last part of."""
        self.waiting = True
        self.ended = False

    @property
    def to_compute(self) -> int:
        """Tokens whose KV is missing; 1: it decodes."""
        return len(self.tokens) - self.computed

    def over_before_it_began(self) -> EngineFinish | None:
        """Why nothing is left to generate; None: something is. (A lost replica's tokens may be all of it.)"""
        if self.text.stop_reason is not None:
            return EngineFinish.STOP
        return EngineFinish.LENGTH if self.generated >= self.limit else None

    def append(self, token: int, eos: frozenset[int]) -> tuple[str, EngineFinish | None]:
        """Take the next token: (text to give out, why the answer ends with it)."""
        self.tokens.append(token)
        self.generated += 1
        if token in eos and not self.sampling.ignore_eos:
            return self.text.push(token) + self.text.flush(), EngineFinish.STOP
        text = self.text.push(token)
        if self.text.stop_reason is not None:
            return text, EngineFinish.STOP
        if self.generated >= self.limit:
            return text + self.text.flush(), EngineFinish.LENGTH
        return text, None

    def __lt__(self, other: Sequence) -> bool:
        return self.key < other.key
