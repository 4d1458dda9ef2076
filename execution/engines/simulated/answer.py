"""The answer to a request: which tokens it has and where it ends, known before the first step.

Tokens are printable ASCII characters of the byte tokenizer, drawn from hashes. At every position there is a
distribution over 32 characters, the r-th likeliest having probability 2 ** -(r + 1). Which characters, follows from
(weights, prompt, position); which of them is chosen, from (seed, position) and the sampling parameters. So any part
of an answer can be made anywhere, without the parts before it.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from functools import lru_cache
from hashlib import blake2b
from statistics import NormalDist

from execution.engines.vocabulary import EOS_ID
from loop.contracts.engine import EngineFinish, EngineRequest, SamplingParams, Tokenizer, TokenLogprob

ALPHABET = b" etaoinshrdlucmfwypvbgkjxqz.,?!-"
"""Characters of answers, commonest first; each is a token."""
BLOCK = 64
"""Positions that one hash decides."""
_SIZE = len(ALPHABET)
_LN2 = math.log(2.0)
_FREQUENCIES = (46, 26, 19, 17, 16, 15, 14, 13, 13, 12, 9, 9, 6, 6, 5, 5, 5, 4, 4, 2, 3, 1)
"""How many of 256 hash values begin at each of the commonest characters; one for each of the others."""


def _base_table() -> bytes:
    counts = [*_FREQUENCIES, *([1] * (_SIZE - len(_FREQUENCIES)))]
    table = b"".join(bytes([i]) * count for i, count in enumerate(counts))
    return table[:256] + bytes(max(0, 256 - len(table)))


_BASE = _base_table()
"""Hash value -> index in the alphabet of the likeliest character."""
_GREEDY = bytes(ALPHABET[i] for i in _BASE)


@lru_cache(maxsize=256)
def _rank_table(temperature: float, top_k: int, top_p: float) -> bytes:
    """Hash value -> rank of the chosen character."""
    ranks = min(top_k, _SIZE) if top_k else _SIZE
    weights = [math.exp(-_LN2 * rank / temperature) for rank in range(ranks)]
    kept: list[float] = []
    for weight in weights:
        kept.append(weight)
        if sum(kept) >= top_p * sum(weights):
            break
    total = sum(kept)
    bounds = [sum(kept[: i + 1]) / total for i in range(len(kept))]
    return bytes(min(bisect_left(bounds, (value + 0.5) / 256.0), len(kept) - 1) for value in range(256))


@lru_cache(maxsize=64)
def _length_of(median_tokens: float, sigma: float) -> tuple[int, ...]:
    """Quantiles of the log-normal distribution of lengths, 1024 of equal weight."""
    normal = NormalDist(math.log(median_tokens), max(sigma, 1e-9))
    return tuple(max(1, round(math.exp(normal.inv_cdf((i + 0.5) / 1024.0)))) for i in range(1024))


class Answer:
    """One answer. Positions count from its first token, whoever made that; `first` is the first to be made here."""

    __slots__ = (
        "_chosen_key",
        "_codes",
        "_cut",
        "_greedy",
        "_key",
        "_origin",
        "_ranks",
        "end",
        "eos",
        "finish",
        "first",
        "stop_reason",
    )

    def __init__(  # noqa: PLR0917 - called once
        self,
        request: EngineRequest,
        seed: int,
        weights: bytes,
        tokenizer: Tokenizer,
        room_tokens: int,
        median_tokens: float,
        sigma: float,
    ) -> None:
        sampling = request.sampling
        first = self.first = request.generated
        prompt = request.prompt_token_ids[: len(request.prompt_token_ids) - first]
        self._key = blake2b(
            array("q", prompt).tobytes() + (request.adapter or "").encode(), key=weights, digest_size=32
        ).digest()
        self._greedy = sampling.temperature == 0.0
        self._chosen_key = blake2b(str(seed).encode(), key=self._key, digest_size=32).digest()
        self._ranks = (
            b"" if self._greedy else _rank_table(sampling.temperature, sampling.top_k, sampling.top_p)
        )
        self._origin = first - first % BLOCK
        self._codes = bytearray()
        self.finish = EngineFinish.LENGTH
        self.stop_reason: str | None = None
        self.end = min(sampling.max_tokens, room_tokens)
        """Position after the last token."""
        self.eos = False
        """The last token ends the sequence, and has no text."""
        if median_tokens and not sampling.ignore_eos:
            natural = self._natural_length(median_tokens, sigma)
            if natural <= self.end:
                self.end, self.eos, self.finish = natural, True, EngineFinish.STOP
        self._cut = self.end - self.eos
        if sampling.stop:
            self._find_stop(sampling, tokenizer.decode(request.prompt_token_ids[len(prompt) :]))

    def tokens(self, start: int, end: int) -> tuple[int, ...]:
        """Ids at positions [start, end)."""
        last = self.end - self.eos
        if end > last:
            return (*self._slice(start, last), *((EOS_ID,) if start <= last else ()))
        return tuple(self._slice(start, end))

    def text(self, start: int, end: int) -> str:
        """What positions [start, end) add to the text: nothing of a stop string."""
        return self._slice(start, min(end, self._cut)).decode("ascii")

    def logprobs(self, start: int, end: int, count: int) -> tuple[TokenLogprob, ...]:
        """Of the tokens at [start, end), each with the `count` likeliest (at most 32 have any probability)."""
        found = []
        for position in range(start, end):
            order = self._order(position)
            if self.eos and position == self.end - 1:
                order = [EOS_ID, *order[:-1]]
                chosen = EOS_ID
            else:
                chosen = self._slice(position, position + 1)[0]
            rank = order.index(chosen)
            top = tuple((token, -_LN2 * (i + 1)) for i, token in enumerate(order[:count]))
            found.append(TokenLogprob(chosen, -_LN2 * (rank + 1), top))
        return tuple(found)

    def _natural_length(self, median_tokens: float, sigma: float) -> int:
        digest = blake2b(
            b"length", key=self._key if self._greedy else self._chosen_key, digest_size=2
        ).digest()
        return _length_of(median_tokens, sigma)[int.from_bytes(digest, "little") & 1023]

    def _order(self, position: int) -> list[int]:
        """Token ids at a position, likeliest first."""
        block, offset = divmod(position, BLOCK)
        base = _BASE[self._digest(self._key, block)[offset]]
        return list(ALPHABET[base:] + ALPHABET[:base])

    def _slice(self, start: int, end: int) -> bytes:
        """Characters of positions [start, end), from `_origin` on; of none when start >= end."""
        if start >= end:
            return b""
        codes = self._codes
        origin = self._origin
        while origin + len(codes) < end:
            codes += self._make(origin // BLOCK + len(codes) // BLOCK)
        return bytes(codes[start - origin : end - origin])

    def _make(self, block: int) -> bytes:
        digest = self._digest(self._key, block)
        if self._greedy:
            return digest.translate(_GREEDY)
        ranks = self._digest(self._chosen_key, block).translate(self._ranks)
        return bytes(
            [ALPHABET[(i + rank) % _SIZE] for i, rank in zip(digest.translate(_BASE), ranks, strict=True)]
        )

    @staticmethod
    def _digest(key: bytes, block: int) -> bytes:
        return blake2b(block.to_bytes(8, "little"), key=key).digest()

    def _find_stop(self, sampling: SamplingParams, prior: str) -> None:
        """End the answer with the token that completes the first stop string."""
        text = prior
        for start in range(self.first, max(self._cut, self.first + 1), 1024):
            text += self._slice(start, min(start + 1024, self._cut)).decode("ascii")
            ends = [(at + len(stop), at, stop) for stop in sampling.stop if (at := text.find(stop)) >= 0]
            if ends:
                end, at, self.stop_reason = min(ends)
                shift = self.first - len(
                    prior
                )  # characters of the prior part may be more or fewer than tokens
                self.end = max(end + shift, self.first)
                self._cut = max(at + shift, self.first)
                self.eos = False
                self.finish = EngineFinish.STOP
                return
