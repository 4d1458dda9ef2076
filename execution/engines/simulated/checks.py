"""What the simulated engine is asked for: what can never be served, and which prompts begin alike."""

from __future__ import annotations

import math

from execution.twin.leap import BLOCK_TOKENS
from loop.contracts.engine import EngineInfo, EngineLimits, EngineRequest, EngineRequestError


def checked_limits(limits: EngineLimits) -> EngineLimits:
    """Limits that make sense. Raises ValueError."""
    for name in ("max_num_seqs", "max_num_batched_tokens", "max_waiting"):
        if getattr(limits, name) < 1:
            raise ValueError(f"EngineLimits.{name} must be at least 1, not {getattr(limits, name)}")
    return limits


def room_for(request: EngineRequest, info: EngineInfo) -> int:
    """Most tokens that the answer may have in all. Raises EngineRequestError when it can have none, ever."""
    tokens, generated, sampling = request.prompt_token_ids, request.generated, request.sampling
    longest = info.max_model_len
    if not tokens:
        raise EngineRequestError("the prompt is empty")
    if not 0 <= generated < len(tokens):
        raise EngineRequestError(f"generated={generated} of a prompt of {len(tokens)} tokens")
    if len(tokens) >= longest:
        raise EngineRequestError(
            f"the prompt has {len(tokens)} tokens: with one more for the answer it exceeds the model's {longest}"
        )
    if max(tokens) >= info.vocab_size or min(tokens) < 0:
        raise EngineRequestError(f"a prompt token is outside the vocabulary of {info.vocab_size}")
    if request.adapter is not None:
        raise EngineRequestError(f"unknown adapter {request.adapter!r}: the simulated engine loads none")
    if sampling.max_tokens < 1:
        raise EngineRequestError(f"max_tokens must be at least 1, not {sampling.max_tokens}")
    if not 0.0 <= sampling.temperature < math.inf or not 0.0 < sampling.top_p <= 1.0 or sampling.top_k < 0:
        raise EngineRequestError(
            f"temperature={sampling.temperature}, top_p={sampling.top_p}, top_k={sampling.top_k} make no sense"
        )
    if sampling.logprobs is not None and sampling.logprobs < 0:
        raise EngineRequestError(f"logprobs must not be negative, not {sampling.logprobs}")
    if not all(sampling.stop):
        raise EngineRequestError("an empty stop string ends every answer before it begins")
    return longest - (len(tokens) - generated)


def block_hashes(tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Of each whole block of the prompt and all before it. Hashes of integers are the same in every process."""
    hashes = []
    digest = 0
    for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        digest = hash((digest, tokens[end - BLOCK_TOKENS : end]))
        hashes.append(digest)
    return tuple(hashes)
