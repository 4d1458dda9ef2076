"""From an EngineRequest to what vLLM is asked; and what is wrong with a request."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from execution.engines.vllm.flight import Asked
from loop.contracts import EngineInfo, EngineRequest, Tokenizer

_SEEDS = 1 << 63


def problem_of(request: EngineRequest, info: EngineInfo, max_logprobs: int, adapters: Collection[str]) -> str:
    """Why this engine can never serve a request, in words; empty: it can."""
    return next(_problems(request, info, max_logprobs, adapters), "")


def most_tokens(request: EngineRequest, info: EngineInfo) -> int:
    """Tokens that the whole answer may have."""
    room = info.max_model_len - len(request.prompt_token_ids) + request.generated
    return min(request.sampling.max_tokens, room)


def asked_of(
    request: EngineRequest, info: EngineInfo, tokenizer: Tokenizer, *, seeded_sampler: bool
) -> Asked:
    """The request for vLLM: no stop strings (they are found in the text), stop tokens by id.

    With `seeded_sampler` a seeded request's tokens are drawn by `sampler.SeededSampler`, and vLLM, told to be greedy,
    takes what that leaves.
    """
    sampling = request.sampling
    extra: dict[str, str | int | float] = {
        "autopoiesis_priority": request.priority,
        "autopoiesis_arrival_s": request.arrival_s,
    }
    temperature, top_p, top_k = sampling.temperature, sampling.top_p, sampling.top_k
    seed = None if sampling.seed is None else sampling.seed % _SEEDS
    if temperature > 0 and seed is not None and seeded_sampler:
        extra |= {
            "autopoiesis_seed": seed,
            "autopoiesis_position": request.generated,
            "autopoiesis_temperature": temperature,
            "autopoiesis_top_p": top_p,
            "autopoiesis_top_k": top_k,
        }
        temperature, top_p, top_k, seed = 0.0, 1.0, 0, None
    return Asked(
        id=request.id,
        prompt_token_ids=request.prompt_token_ids,
        max_tokens=most_tokens(request, info) - request.generated,
        stop_token_ids=() if sampling.ignore_eos else tuple(sorted(tokenizer.eos_token_ids)),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        logprobs=sampling.logprobs,
        extra=extra,
        adapter=request.adapter,
    )


def _problems(
    request: EngineRequest, info: EngineInfo, max_logprobs: int, adapters: Collection[str]
) -> Iterator[str]:
    prompt, sampling = request.prompt_token_ids, request.sampling
    if not prompt:
        yield "the prompt is empty"
    if not 0 <= request.generated <= len(prompt):
        yield f"generated is {request.generated}, of a prompt of {len(prompt)} tokens"
    if len(prompt) - request.generated >= info.max_model_len:
        yield f"the prompt has {len(prompt)} tokens, of {info.max_model_len} for prompt and answer"
    if min(prompt) < 0 or max(prompt) >= info.vocab_size:
        yield f"a token id of the prompt is not in the vocabulary of {info.vocab_size}"
    if sampling.max_tokens < 1:
        yield f"max_tokens is {sampling.max_tokens}: at least 1 is expected"
    if not (sampling.temperature >= 0 and 0 < sampling.top_p <= 1 and sampling.top_k >= 0):
        yield "temperature >= 0, 0 < top_p <= 1 and top_k >= 0 are expected"
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= max_logprobs:
        yield f"logprobs is {sampling.logprobs}, of at most {max_logprobs} (option max_logprobs)"
    if request.adapter is not None and request.adapter not in adapters:
        yield f"adapter {request.adapter!r} is not loaded"
