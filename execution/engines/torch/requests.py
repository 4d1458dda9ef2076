"""What an engine refuses before it begins."""

from __future__ import annotations

import math

from loop.contracts.engine import EngineInfo, EngineRequest, EngineRequestError, SamplingParams


def check_request(request: EngineRequest, info: EngineInfo) -> None:
    """Raises EngineRequestError for what this engine could never serve."""
    tokens, own = request.prompt_token_ids, len(request.prompt_token_ids) - request.generated
    if request.generated < 0 or own < 1:
        raise EngineRequestError(
            f"request {request.id}: a prompt of at least one token is needed "
            f"({len(tokens)} given, {request.generated} of them generated)"
        )
    if own >= info.max_model_len or len(tokens) > info.max_model_len:
        raise EngineRequestError(
            f"request {request.id}: {len(tokens)} tokens leave no room for an answer: "
            f"this engine holds {info.max_model_len} tokens, prompt and answer"
        )
    if min(tokens) < 0 or max(tokens) >= info.vocab_size:
        raise EngineRequestError(
            f"request {request.id}: token ids must be from 0 to {info.vocab_size - 1}: "
            f"{min(tokens)} to {max(tokens)} given"
        )
    if request.adapter is not None:
        raise EngineRequestError(f"request {request.id}: unknown adapter {request.adapter!r}: none is loaded")
    wrong = _complaint(request.sampling, info)
    if wrong:
        raise EngineRequestError(f"request {request.id}: {wrong}")


def _complaint(sampling: SamplingParams, info: EngineInfo) -> str:
    """What is wrong with the first field that is wrong; empty: nothing."""
    counts = info.vocab_size
    rules = (
        ("max_tokens", sampling.max_tokens >= 1, "at least 1"),
        ("temperature", math.isfinite(sampling.temperature) and sampling.temperature >= 0, "0 or more"),
        ("top_p", 0 < sampling.top_p <= 1, "above 0, at most 1"),
        ("top_k", sampling.top_k >= 0, "0 (all tokens) or more"),
        ("logprobs", sampling.logprobs is None or 0 <= sampling.logprobs <= counts, f"from 0 to {counts}"),
        ("stop", all(sampling.stop), "no empty string"),
    )
    for name, holds, rule in rules:
        if not holds:
            return f"{name}: {rule}, not {getattr(sampling, name)}"
    return ""
