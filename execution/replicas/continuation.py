"""The text of an answer that lost its replica: it goes on exactly where the client saw it end.

Engines hold text back (half characters, what may become a stop string), each in its own way. So from the loss on, text
is made here, from all tokens of the answer, and what the client has already is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from execution.engines.tokenizer import Detokeniser
from loop.contracts import EngineFinish, SamplingParams, Tokenizer


class Continuation:
    """Detokeniser of the rest of an answer that may have `most_tokens` in all; `token_ids` were made, and the client
    has `sent` of their text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        token_ids: Sequence[int],
        sent: str,
        most_tokens: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._most_tokens = most_tokens
        self._detokeniser = Detokeniser(tokenizer, sampling.stop)
        known = "".join([self._detokeniser.push(token_id) for token_id in token_ids])
        self._skip = _already_sent(known, sent)
        self._pending = ""
        self._give(known)

    @property
    def stop_reason(self) -> str | None:
        """The stop string that ended the answer."""
        return self._detokeniser.stop_reason

    def finish(self, token_ids: Sequence[int]) -> EngineFinish | None:
        """Not None: an answer of these tokens, all pushed, is complete, though nobody said so."""
        if self._detokeniser.stop_reason is not None:
            return EngineFinish.STOP
        if not self._sampling.ignore_eos and token_ids[-1] in self._tokenizer.eos_token_ids:
            return EngineFinish.STOP
        return EngineFinish.LENGTH if len(token_ids) >= self._most_tokens else None

    def push(self, token_ids: Sequence[int], *, last: bool) -> str:
        """Text that these tokens allow to be given out."""
        for token_id in token_ids:
            self._give(self._detokeniser.push(token_id))
        if last and self._detokeniser.stop_reason is None:
            self._give(self._detokeniser.flush())
        text, self._pending = self._pending, ""
        return text

    def _give(self, text: str) -> None:
        skipped = min(self._skip, len(text))
        self._skip -= skipped
        self._pending += text[skipped:]


def _already_sent(known: str, sent: str) -> int:
    """How many characters of `known` the client has. (An engine that decodes the answer behind its prompt may have
    begun with a space that the answer alone does not have.)"""
    if not known.startswith(sent) and known.startswith(sent.lstrip()):
        return len(sent.lstrip())
    return len(sent)
