"""Two synthesisers as one: what the slow one has ready comes first, the quick one fills the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from loop.contracts import Evaluation, Observation, Parent, PolicySource, SynthesisCost, Synthesiser

_REMEMBERED = 4096
"""Candidates of the slow one whose end is still awaited."""


@runtime_checkable
class Listener(Protocol):
    """A synthesiser that also learns from others' candidates."""

    def overhear(
        self, candidate: PolicySource, evaluation: Evaluation, parent_objective: float | None
    ) -> None:
        """What became of a candidate that another synthesiser made."""


class MixedSynthesiser:
    """Never waits for the slow one's answers. Implements the Synthesiser port.

    Each is told only of what it made (a slow one that listens also overhears the rest), so that the quick one
    does exactly what it does alone for as long as the slow one gives nothing. Let the slow one wait for
    nothing (`LlmConfig.wait_s` = 0): each of its waits is time in which nothing is scored.
    """

    def __init__(self, slow: Synthesiser, quick: Synthesiser) -> None:
        self._slow = slow
        self._quick = quick
        self._by_slow: dict[str, None] = {}

    @property
    def pending(self) -> int:
        """Of both."""
        return self._slow.pending + self._quick.pending

    @property
    def cost(self) -> SynthesisCost:
        """Of both."""
        slow, quick = self._slow.cost, self._quick.cost
        return SynthesisCost(
            slow.requests + quick.requests,
            slow.failures + quick.failures,
            slow.prompt_tokens + quick.prompt_tokens,
            slow.completion_tokens + quick.completion_tokens,
            slow.usd + quick.usd,
        )

    @property
    def trouble(self) -> str:
        """Why one of them gives nothing at the moment, in words; empty: all is well."""
        texts = (getattr(one, "trouble", "") for one in (self._slow, self._quick))
        return "; ".join(text for text in texts if text)

    def ask(self, parents: Sequence[Parent], obs: Observation | None, count: int) -> list[PolicySource]:
        """What the slow one has ready, then as many of the quick one as are missing."""
        found = self._slow.ask(parents, obs, count)
        self._by_slow.update(dict.fromkeys(candidate.digest for candidate in found))
        while len(self._by_slow) > _REMEMBERED:
            del self._by_slow[next(iter(self._by_slow))]
        missing = count - len(found)
        return found + (self._quick.ask(parents, obs, missing) if missing > 0 else [])

    def tell(self, candidate: PolicySource, evaluation: Evaluation, parent_objective: float | None) -> None:
        """To whoever made it."""
        if candidate.digest in self._by_slow:
            del self._by_slow[candidate.digest]
            self._slow.tell(candidate, evaluation, parent_objective)
            return
        self._quick.tell(candidate, evaluation, parent_objective)
        if isinstance(self._slow, Listener):
            self._slow.overhear(candidate, evaluation, parent_objective)

    def close(self) -> None:
        """Close both, the second even when the first fails."""
        try:
            self._slow.close()
        finally:
            self._quick.close()
