"""What clients receive, as the OpenAPI document describes it. The bytes are made in `formats`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length"]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CachedTokens(_Answer):
    """Of the prompt's tokens."""

    cached_tokens: int


class TokenUsage(_Answer):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class CompletionLogprobs(_Answer):
    """Natural logarithms of probabilities, position by position."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(_Answer):
    """One answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class Completion(_Answer):
    """Answer of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: TokenUsage


class CompletionEventChoice(_Answer):
    """A piece of one answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class CompletionEvent(_Answer):
    """One event of a streamed /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionEventChoice]
    usage: TokenUsage | None = None


class TopLogprob(_Answer):
    """A token that might have been."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    """A token that is."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Answer):
    """Natural logarithms of probabilities, position by position."""

    content: list[ChatLogprob]
    refusal: None


class AnswerMessage(_Answer):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Answer):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(_Answer):
    """Answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage


class Delta(_Answer):
    """What comes to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatEventChoice(_Answer):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatEvent(_Answer):
    """One event of a streamed /v1/chat/completions."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatEventChoice]
    usage: TokenUsage | None = None


class Model(_Answer):
    """A model that can be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    ready: bool


class ModelList(_Answer):
    """Answer of /v1/models."""

    object: Literal["list"]
    data: list[Model]


class Health(_Answer):
    """State of the server."""

    status: str
    models: list[str] | None = None


class Error(_Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(_Answer):
    """Every answer that is an error; in a stream, its last event."""

    error: Error


MODELS: tuple[type[BaseModel], ...] = (
    Completion,
    CompletionEvent,
    ChatCompletion,
    ChatEvent,
    Model,
    ModelList,
    Health,
    ErrorAnswer,
)
