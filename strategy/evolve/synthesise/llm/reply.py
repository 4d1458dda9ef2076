"""What an endpoint answered, or the typed reason why it did not; read from bodies that may hold anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Redact = Callable[[str], str]
"""Takes the key out of a text."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the endpoint answered."""

    text: str
    finish: str
    """`stop`, `length`, `content_filter`, ...; empty: not said."""
    refusal: str
    """The model's own words; empty: it did not refuse in a way that the API marks."""
    prompt_tokens: int | None
    """None: the endpoint did not count."""
    completion_tokens: int | None


class ChatFault(Exception):
    """A request without an answer.

    `outcome` is one of `Exchange.outcome`. `permanent`: the model will not answer later either.
    `may_be_charged`: the endpoint may have worked on it. `down`: a failure of the endpoint, not of the request.
    """

    def __init__(
        self,
        outcome: str,
        detail: str,
        *,
        permanent: bool = False,
        may_be_charged: bool = False,
        down: bool = False,
        wait_s: float | None = None,
    ) -> None:
        super().__init__(f"{outcome}: {detail}")
        self.outcome = outcome
        self.detail = detail
        self.permanent = permanent
        self.may_be_charged = may_be_charged
        self.down = down
        self.wait_s = wait_s


def read_reply(body: bytes, redact: Redact) -> Reply:
    """The parts of a chat completion that count; what is missing is empty.

    Raises:
        ChatFault: no JSON object, or one without an answer in it.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        start = ascii(redact(body[:4096].decode("latin-1"))[:60])
        raise _malformed(f"the body is no JSON: {start}") from None
    choices = data.get("choices") if isinstance(data, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(first, dict) or not isinstance(message, dict):
        raise _malformed(one_line(f"the body holds no choice but {data}", redact))
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        _text_of(message.get("content")),
        clean(first.get("finish_reason")),
        clean(message.get("refusal")),
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def _malformed(detail: str) -> ChatFault:
    return ChatFault("server-error", detail, may_be_charged=True, down=True)


def _text_of(content: Any) -> str:
    """A string, or the text parts of a list of parts. Lone surrogates cannot be stored: they become `?`."""
    if isinstance(content, list):
        content = "".join(clean(part.get("text")) for part in content if isinstance(part, Mapping))
    return clean(content)


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
        return None
    return value


def clean(value: Any) -> str:
    """Text that can be stored: lone surrogates become `?`; of what is no text, nothing."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def one_line(text: str, redact: Redact) -> str:
    """Redacted before it is cut: half a key is also too much."""
    return " ".join(redact(clean(text)).split())[:300]
