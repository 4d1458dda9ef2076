"""From a client's request to what the backend serves: model and adapter, tokens, sampling, limits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from loop.contracts.engine import (
    ModelCard,
    SamplingParams,
    ServeRequest,
    ServingBackend,
    Tokenizer,
    UnknownModelError,
)
from loop.gateway.config import GatewayConfig
from loop.gateway.errors import ApiError, unknown_model
from loop.gateway.schema import ChatMessage, ChatRequest, CompletionRequest, GenerateRequest

LONG_CHARACTERS = 20_000
"""Longer texts are tokenized in a thread: no other request waits for them."""
DEFAULT_MAX_TOKENS = 16
"""Of /v1/completions; chat answers go on to the end of the context."""
SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class Job:
    """A client's request, ready to be served: one ServeRequest for each choice of its answer."""

    model: str
    """As the client called it."""
    card: ModelCard
    tokenizer: Tokenizer
    choices: tuple[ServeRequest, ...]
    prompt_tokens: int
    """Of all prompts, each counted once."""
    echoes: tuple[str, ...]
    """What each choice's text begins with."""
    stream: bool
    include_usage: bool


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request is served under."""

    id: str
    tier: int
    deadline_s: float
    """`time.monotonic()`."""


async def job_of(
    asked: CompletionRequest | ChatRequest, backend: ServingBackend, config: GatewayConfig, terms: Terms
) -> Job:
    """Resolve the model, tokenize, and check against limits. Raises ApiError."""
    card, adapter = _model_of(asked.model, backend.models())
    try:
        tokenizer = backend.tokenizer(card.name)
    except UnknownModelError:
        raise unknown_model(asked.model) from None
    n = asked.n or 1
    echo = False
    if isinstance(asked, CompletionRequest):
        _check_completion(asked, n)
        prompts, echoed = await _completion_prompts(asked, tokenizer, config.max_choices // n)
        wanted, param = asked.max_tokens, "max_tokens"
        logprobs, echo = asked.logprobs, bool(asked.echo)
        default = DEFAULT_MAX_TOKENS
    else:
        prompts, echoed = [await _chat_prompt(asked.messages, tokenizer)], [""]
        wanted = asked.max_completion_tokens or asked.max_tokens
        param = "max_completion_tokens" if asked.max_completion_tokens else "max_tokens"
        logprobs = _chat_logprobs(asked)
        default = card.max_model_len
    if n * len(prompts) > config.max_choices:
        raise ApiError(
            400,
            f"n times the number of prompts is {n * len(prompts)}, above {config.max_choices}.",
            code="invalid_value",
            param="n",
        )
    choices: list[ServeRequest] = []
    for prompt in prompts:
        room = _room(prompt, card, config, tokenizer.vocab_size)
        limit = _answer_tokens(wanted, param, room, default, config)
        for i in range(n):
            choices.append(
                ServeRequest(
                    id=f"{terms.id}-{len(choices)}",
                    model=card.name,
                    prompt_token_ids=prompt,
                    sampling=_sampling(asked, limit, logprobs, i),
                    tier=terms.tier,
                    deadline_s=terms.deadline_s,
                    adapter=adapter,
                )
            )
    return Job(
        model=asked.model,
        card=card,
        tokenizer=tokenizer,
        choices=tuple(choices),
        prompt_tokens=sum(map(len, prompts)),
        echoes=tuple(text if echo else "" for text in echoed for _ in range(n)),
        stream=bool(asked.stream),
        include_usage=_include_usage(asked),
    )


def _model_of(name: str, cards: Sequence[ModelCard]) -> tuple[ModelCard, str | None]:
    """The model, and the adapter in `MODEL:ADAPTER`; a name that is listed as it is comes first."""
    named = {card.name: card for card in cards}
    if name in named:
        return named[name], None
    base, colon, adapter = name.rpartition(":")
    if colon and adapter and base in named:
        return named[base], adapter
    raise unknown_model(name)


def _check_completion(asked: CompletionRequest, n: int) -> None:
    if asked.best_of not in {None, n}:
        raise ApiError(
            400, "best_of is served only where it equals n.", code="unsupported_value", param="best_of"
        )
    if asked.echo and asked.logprobs is not None:
        raise ApiError(
            400, "echo together with logprobs is not supported.", code="unsupported_value", param="echo"
        )


def _chat_logprobs(asked: ChatRequest) -> int | None:
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ApiError(
            400, "top_logprobs needs logprobs to be true.", code="invalid_value", param="top_logprobs"
        )
    return (asked.top_logprobs or 0) if asked.logprobs else None


def _include_usage(asked: GenerateRequest) -> bool:
    if asked.stream_options is not None and not asked.stream:
        raise ApiError(
            400, "stream_options needs stream to be true.", code="invalid_value", param="stream_options"
        )
    return bool(asked.stream_options and asked.stream_options.include_usage)


async def _completion_prompts(
    asked: CompletionRequest, tokenizer: Tokenizer, most: int
) -> tuple[list[tuple[int, ...]], list[str]]:
    """Token ids and, with `echo`, text of each prompt."""
    prompt = asked.prompt
    given = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    if len(given) > max(1, most):
        raise ApiError(
            400, f"{len(given)} prompts in one request are too many.", code="invalid_value", param="prompt"
        )
    ids: list[tuple[int, ...]] = []
    texts: list[str] = []
    for one in given:
        if isinstance(one, str):
            ids.append(tuple(await _encoded(one, tokenizer)))
            texts.append(one)
        else:
            ids.append(tuple(one))
            texts.append("")
    if asked.echo:
        texts = [
            text or (tokenizer.decode(each) if max(each) < tokenizer.vocab_size else "")
            for text, each in zip(texts, ids, strict=True)
        ]
    return ids, texts


async def _encoded(text: str, tokenizer: Tokenizer) -> list[int]:
    if len(text) > LONG_CHARACTERS:
        return await asyncio.to_thread(tokenizer.encode, text)
    return tokenizer.encode(text)


async def _chat_prompt(messages: Sequence[ChatMessage], tokenizer: Tokenizer) -> tuple[int, ...]:
    plain = [{"role": _role(m.role), "content": _content(m)} for m in messages]
    try:
        if sum(len(m["content"]) for m in plain) > LONG_CHARACTERS:
            return tuple(await asyncio.to_thread(tokenizer.chat, plain))
        return tuple(tokenizer.chat(plain))
    except ValueError as error:
        raise ApiError(
            400, f"The model cannot take these messages: {error}", code="invalid_value", param="messages"
        ) from error


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _content(message: ChatMessage) -> str:
    content = message.content
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _room(prompt: tuple[int, ...], card: ModelCard, config: GatewayConfig, vocab_size: int) -> int:
    """Tokens left for the answer. Raises ApiError for a prompt that cannot be served."""
    if not prompt:
        raise ApiError(400, "The prompt has no token.", code="invalid_value", param="prompt")
    if max(prompt) >= vocab_size:
        message = f"Token id {max(prompt)} is out of the vocabulary of {vocab_size}."
        raise ApiError(400, message, code="invalid_value", param="prompt")
    if config.max_prompt_tokens is not None and len(prompt) > config.max_prompt_tokens:
        message = f"The prompt has {len(prompt)} tokens; this server takes {config.max_prompt_tokens}."
        raise ApiError(400, message, code="context_length_exceeded", param="prompt")
    room = card.max_model_len - len(prompt)
    if room < 1:
        raise _too_long(card, len(prompt), 1)
    return room


def _answer_tokens(wanted: int | None, param: str, room: int, default: int, config: GatewayConfig) -> int:
    most = room if config.max_output_tokens is None else min(room, config.max_output_tokens)
    if wanted is None:
        return min(default, most)
    if config.max_output_tokens is not None and wanted > config.max_output_tokens:
        message = f"{param} is {wanted}; this server makes {config.max_output_tokens} at most."
        raise ApiError(400, message, code="invalid_value", param=param)
    if wanted > room:
        message = f"The prompt leaves room for {room} tokens in this model's context, and {wanted} were requested in {param}."
        raise ApiError(400, message, code="context_length_exceeded", param=param)
    return wanted


def _too_long(card: ModelCard, prompt_tokens: int, answer_tokens: int) -> ApiError:
    message = (
        f"This model's maximum context length is {card.max_model_len} tokens; the prompt has {prompt_tokens} "
        f"and the answer needs {answer_tokens} at least."
    )
    return ApiError(400, message, code="context_length_exceeded", param="prompt")


def _sampling(asked: GenerateRequest, max_tokens: int, logprobs: int | None, index: int) -> SamplingParams:
    """Sampling of choice `index` of a prompt: choices of a seeded request differ, each reproducible."""
    stop = asked.stop
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        top_k=max(0, asked.top_k or 0),
        seed=None if asked.seed is None else (asked.seed + index) % SEEDS,
        stop=() if stop is None else (stop,) if isinstance(stop, str) else tuple(stop),
        ignore_eos=bool(asked.ignore_eos),
        logprobs=logprobs,
    )
