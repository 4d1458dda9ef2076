"""Tokens and money: the worst case of a request is put aside before it is sent, and settled when it is over.

So what is spent never exceeds the budget by more than the prompts in flight were underestimated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from loop.contracts import SynthesisCost
from strategy.evolve.synthesise.llm.config import LlmModel

_TOKENS_PER_BYTE = 0.34
"""Assumed until an endpoint has counted: code and English in byte-pair encodings come to 0.22 to 0.33."""
_TOKENS_PER_MESSAGE = 8
"""What chat templates put around a message."""


class TokenEstimator:
    """Length of a text in tokens, on the safe side, corrected by what the endpoint counts."""

    def __init__(self) -> None:
        self._rate = _TOKENS_PER_BYTE

    def tokens(self, text: str, messages: int = 1) -> int:
        """Estimated tokens of a text that is sent as so many messages."""
        length = len(text.encode("utf-8", "replace"))
        return math.ceil(length * self._rate) + messages * _TOKENS_PER_MESSAGE

    def learn(self, text: str, tokens: int) -> None:
        """The endpoint counted so many tokens for this prompt: more is believed at once, less slowly."""
        length = len(text.encode("utf-8", "replace"))
        if length < 256 or tokens <= 0:
            return
        rate = min(1.5, max(0.1, 1.02 * tokens / length))
        self._rate = rate if rate > self._rate else 0.8 * self._rate + 0.2 * rate


@dataclass(frozen=True, slots=True)
class Reservation:
    """The worst case of one request."""

    model: LlmModel
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        """Together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def usd(self) -> float:
        """At the model's prices."""
        return self.model.usd(self.prompt_tokens, self.completion_tokens)


class Ledger:
    """What was spent, what is put aside, and whether more fits. None: no limit."""

    def __init__(self, token_budget: int | None, usd_budget: float | None) -> None:
        self._token_budget = token_budget
        self._usd_budget = usd_budget
        self._tokens_aside = 0
        self._usd_aside = 0.0
        self._cost = SynthesisCost()

    @property
    def cost(self) -> SynthesisCost:
        """Of all requests that are over."""
        return self._cost

    def reserve(self, model: LlmModel, prompt_tokens: int, completion_tokens: int) -> Reservation | None:
        """Put the worst case aside; None: it no longer fits."""
        wanted = Reservation(model, prompt_tokens, completion_tokens)
        if self.shortage(wanted):
            return None
        self._tokens_aside += wanted.tokens
        self._usd_aside += wanted.usd
        return wanted

    def shortage(self, wanted: Reservation) -> str:
        """Which budget a request no longer fits into, in words; empty: it fits."""
        spent = self._cost.prompt_tokens + self._cost.completion_tokens
        if self._token_budget is not None and spent + self._tokens_aside + wanted.tokens > self._token_budget:
            return f"token budget: {spent} of {self._token_budget} used, the next request may take {wanted.tokens}"
        usd = self._cost.usd + self._usd_aside + wanted.usd
        if self._usd_budget is not None and usd > self._usd_budget:
            return (
                f"money budget: {self._cost.usd:.4f} of {self._usd_budget:g} USD used, "
                f"the next request may take {wanted.usd:.4f}"
            )
        return ""

    def settle(
        self, reservation: Reservation, prompt_tokens: int, completion_tokens: int, *, failed: bool
    ) -> float:
        """Replace what was put aside by what it was; the price in US dollars."""
        self._tokens_aside -= reservation.tokens
        self._usd_aside -= reservation.usd
        usd = reservation.model.usd(prompt_tokens, completion_tokens)
        old = self._cost
        self._cost = replace(
            old,
            requests=old.requests + 1,
            failures=old.failures + failed,
            prompt_tokens=old.prompt_tokens + prompt_tokens,
            completion_tokens=old.completion_tokens + completion_tokens,
            usd=old.usd + usd,
        )
        return usd
