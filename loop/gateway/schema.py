"""What clients send: the bodies of /v1/completions and /v1/chat/completions.

Types are strict (no "5" for 5), unknown names are an error as they are at OpenAI. What OpenAI has and this server
has not is declared with the one value that changes nothing, so that asking for more is a clear 400.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, FailFast, Field, Tag

INT64 = 2**63 - 1


class _AtFirstError(FailFast):
    """Stop at a list's first wrong item: a long list of them costs no more than one. (Members of unions are hashed.)"""

    __hash__ = object.__hash__


TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Text = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1), _AtFirstError()]


def _prompt_form(value: Any) -> str:
    """Which of the four forms a prompt has; decided once, so that an error is about that form."""
    if not isinstance(value, list):
        return "<text>"
    first = value[0] if value else None
    if isinstance(first, str):
        return "<texts>"
    return "<token_id_lists>" if isinstance(first, list) else "<token_ids>"


Prompt = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[Annotated[list[Text], Field(min_length=1), _AtFirstError()], Tag("<texts>")]
    | Annotated[TokenIds, Tag("<token_ids>")]
    | Annotated[Annotated[list[TokenIds], Field(min_length=1), _AtFirstError()], Tag("<token_id_lists>")],
    Discriminator(_prompt_form),
]
StopText = Annotated[str, Field(min_length=1, max_length=1024)]


def _list_or_text(value: Any) -> str:
    return "<list>" if isinstance(value, list) else "<text>"


Stop = Annotated[
    Annotated[StopText, Tag("<text>")]
    | Annotated[Annotated[list[StopText], Field(max_length=16), _AtFirstError()], Tag("<list>")],
    Discriminator(_list_or_text),
]


UNSUPPORTED = frozenset({
    "frequency_penalty", "presence_penalty", "repetition_penalty", "min_p", "min_tokens", "logit_bias", "suffix",
    "response_format", "tools", "tool_choice", "store", "service_tier", "modalities", "function_call", "tool_calls",
    "refusal", "audio", "annotations", "include_obfuscation",
})  # fmt: skip
"""Names that are known, and served with the one value alone that changes nothing."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(_Strict):
    """How to stream."""

    include_usage: bool | None = None
    """A last event with the counts of tokens, `choices` empty."""
    include_obfuscation: Literal[False] | None = None


class GenerateRequest(_Strict):
    """What both kinds of requests have."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    """As /v1/models lists it; `MODEL:ADAPTER` for a LoRA adapter."""
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=INT64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-INT64 - 1, le=INT64)] | None = None
    stop: Stop | None = None
    user: str | None = None
    """Not used."""

    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    """Extension, as vLLM has it. -1 and 0: all tokens."""
    ignore_eos: bool | None = None
    """Extension, as vLLM has it: go on until `max_tokens`."""

    # Only their neutral value is served.
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None


class CompletionRequest(GenerateRequest):
    """Body of /v1/completions."""

    prompt: Prompt
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    """The prompt's text before the answer's; not together with `logprobs`."""
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    """Only as many as `n`."""
    suffix: Literal[""] | None = None


class TextPart(_Strict):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[Annotated[list[TextPart], Field(min_length=1), _AtFirstError()], Tag("<list>")],
    Discriminator(_list_or_text),
]


class ChatMessage(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None
    """Not used."""
    refusal: None = None
    audio: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class TextFormat(_Strict):
    """The only form of answers."""

    type: Literal["text"]


class ChatRequest(GenerateRequest):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1), _AtFirstError()]
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT64)] | None = None
    """Takes precedence over `max_tokens`."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Needs `logprobs`."""
    response_format: TextFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: bool | None = None
    """Not used."""
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    """Not used."""
    service_tier: Literal["auto", "default"] | None = None
    modalities: list[Literal["text"]] | None = None
