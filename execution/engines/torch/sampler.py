"""From logits to tokens, all rows of a step at once.

The token at position i of an answer comes from one number in [0, 1) that (seed, i) alone determine, looked up in the
cumulative distribution of the row: neither the rest of the batch nor what was drawn before has a part in it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from loop.contracts.engine import SamplingParams, TokenLogprob

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Wish:
    """How to choose the next token of one row."""

    sampling: SamplingParams
    seed: int
    position: int
    """Of the token in its answer, from 0."""


def sample(logits: torch.Tensor, wishes: Seq[Wish]) -> list[int]:
    """Next token of each row of `logits` [rows, vocabulary] (float32); -1 where they are not numbers."""
    best, ids = logits.max(dim=-1)
    tokens: list[int] = ids.tolist()
    drawn = [i for i, wish in enumerate(wishes) if wish.sampling.temperature > 0]
    if drawn:
        plain = [i for i in drawn if not _truncated(wishes[i].sampling, logits.shape[1])]
        for rows, draw in (
            (plain, _draw_plain),
            ([i for i in drawn if i not in set(plain)], _draw_truncated),
        ):
            if rows:
                chosen = draw(logits[rows], [wishes[i] for i in rows])
                for row, token in zip(rows, chosen, strict=True):
                    tokens[row] = token
    for row, value in enumerate(best.tolist()):
        if not math.isfinite(value):
            tokens[row] = -1
    return tokens


def logprobs(logits: torch.Tensor, tokens: Seq[int], counts: Seq[int]) -> list[TokenLogprob]:
    """Logprobs of the chosen tokens and of the `counts` likeliest of each row of `logits` [rows, vocabulary]."""
    values = torch.log_softmax(logits, dim=-1)
    chosen = values.gather(1, torch.tensor(tokens, device=values.device).unsqueeze(1)).squeeze(1).tolist()
    top_values, top_ids = values.topk(min(max(counts), values.shape[1]), dim=-1)
    found = []
    for token, logprob, count, ids, tops in zip(
        tokens, chosen, counts, top_ids.tolist(), top_values.tolist(), strict=True
    ):
        found.append(TokenLogprob(token, logprob, tuple(zip(ids[:count], tops[:count], strict=True))))
    return found


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from two integers: splitmix64 (Steele, Lea and Flood, 2014) over both."""
    return (_mix(_mix(seed) + position * 0x9E3779B97F4A7C15) >> 11) * 2.0**-53


def seed_of(engine_seed: int, request_id: str) -> int:
    """The seed of a request that names none."""
    digest = hashlib.blake2b(f"{engine_seed}/{request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _truncated(sampling: SamplingParams, vocabulary: int) -> bool:
    return sampling.top_p < 1 or 0 < sampling.top_k < vocabulary


def _weights(logits: torch.Tensor, wishes: Seq[Wish]) -> torch.Tensor:
    """exp((logit - maximum) / temperature), float64: probabilities but for their sum."""
    temperatures = torch.tensor(
        [w.sampling.temperature for w in wishes], device=logits.device, dtype=torch.float64
    )
    shifted = (logits - logits.amax(dim=-1, keepdim=True)).double()
    return shifted.div_(temperatures.unsqueeze(1)).exp_()


def _lookup(sums: torch.Tensor, wishes: Seq[Wish]) -> torch.Tensor:
    """Index of each row [rows, 1] where its cumulative sums pass its number."""
    numbers = torch.tensor(
        [uniform(w.seed, w.position) for w in wishes], device=sums.device, dtype=torch.float64
    )
    sought = (numbers.unsqueeze(1) * sums[:, -1:]).contiguous()
    return torch.searchsorted(sums, sought, right=True).clamp_(max=sums.shape[1] - 1)


def _draw_plain(logits: torch.Tensor, wishes: Seq[Wish]) -> list[int]:
    found: list[int] = _lookup(_weights(logits, wishes).cumsum(dim=-1), wishes).squeeze(1).tolist()
    return found


def _draw_truncated(logits: torch.Tensor, wishes: Seq[Wish]) -> list[int]:
    """Only the `top_k` likeliest, and of these the fewest that hold `top_p` of the probability."""
    device = logits.device
    weights, ids = _weights(logits, wishes).sort(dim=-1, descending=True, stable=True)
    size = weights.shape[1]
    top_k = torch.tensor([w.sampling.top_k or size for w in wishes], device=device).unsqueeze(1)
    top_p = torch.tensor([w.sampling.top_p for w in wishes], device=device, dtype=torch.float64).unsqueeze(1)
    weights = weights.masked_fill_(torch.arange(size, device=device) >= top_k, 0.0)
    sums = weights.cumsum(dim=-1)
    outside = (sums - weights) >= top_p * sums[:, -1:]
    outside[:, 0] = False
    sums = weights.masked_fill_(outside, 0.0).cumsum_(dim=-1)
    chosen: list[int] = ids.gather(1, _lookup(sums, wishes)).squeeze(1).tolist()
    return chosen
