"""How answers look on the wire: `text_completion` and `chat.completion`, whole and in events.

An event is bytes put together from a prefix made once for each answer and the little that differs: a serving
gateway spends its time here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from loop.contracts.engine import EngineFinish, EngineOutput, Tokenizer, TokenLogprob
from loop.gateway.errors import as_json

DONE = b"data: [DONE]\n\n"
_quoted = json.JSONEncoder().encode  # of a string: C code, no look at options


@dataclass(slots=True)
class Usage:
    """Tokens of an answer."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0

    def as_json(self) -> dict[str, Any]:
        """OpenAI's `usage`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(slots=True)
class Choice:
    """What has come of one choice so far."""

    index: int
    echo: str = ""
    texts: list[str] = field(default_factory=list)
    tokens: int = 0
    cached_tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: EngineFinish | None = None
    begun: bool = False
    offset: int = 0
    """Characters of the tokens whose logprobs were written, for `text_offset`."""


class Format(Protocol):
    """One of the two kinds of answers."""

    def event(self, choice: Choice, output: EngineOutput) -> bytes:
        """The SSE event, or events, of an output; empty when there is nothing to tell."""

    def usage_event(self, usage: Usage) -> bytes:
        """The SSE event with the counts of tokens."""

    def answer(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The whole answer."""


class _Shared:
    """What both kinds have in common."""

    object_name: str
    event_name: str

    def __init__(
        self, answer_id: str, model: str, created: int, tokenizer: Tokenizer, *, logprobs: bool, usage: bool
    ) -> None:
        self._head = {"id": answer_id, "object": self.object_name, "created": created, "model": model}
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        event = as_json({**self._head, "object": self.event_name})[:-1]
        self._prefix = b"data: " + event + b',"choices":[{"index":'
        self._usage_prefix = b"data: " + event + b',"choices":[],"usage":'
        self._suffix = b'}],"usage":null}\n\n' if usage else b"}]}\n\n"

    def usage_event(self, usage: Usage) -> bytes:
        """The SSE event with the counts of tokens."""
        return self._usage_prefix + as_json(usage.as_json()) + b"}\n\n"

    def _whole(self, choices: list[dict[str, Any]], usage: Usage) -> bytes:
        return as_json({**self._head, "choices": choices, "usage": usage.as_json()})

    def _token(self, token_id: int) -> str:
        return self._tokenizer.decode((token_id,))


class CompletionFormat(_Shared):
    """`text_completion`."""

    object_name = "text_completion"
    event_name = "text_completion"

    def event(self, choice: Choice, output: EngineOutput) -> bytes:
        """Text, and why it ended; the first one begins with what is echoed."""
        text = output.text
        if not choice.begun:
            choice.begun = True
            text = choice.echo + text
        if not text and output.finish is None and not output.logprobs:
            return b""
        logprobs = as_json(self._logprobs_of(choice, output.logprobs)) if self._logprobs else b"null"
        return b"%b%d,%b%b%b%b%b%b" % (
            self._prefix, choice.index,
            b'"text":', _quoted(text).encode(),
            b',"logprobs":', logprobs,
            _FINISH[output.finish], self._suffix,
        )  # fmt: skip

    def answer(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The whole answer."""
        shown = [
            {
                "index": choice.index,
                "text": choice.echo + "".join(choice.texts),
                "logprobs": self._logprobs_of(choice, choice.logprobs) if self._logprobs else None,
                "finish_reason": choice.finish,
            }
            for choice in choices
        ]
        return self._whole(shown, usage)

    def _logprobs_of(self, choice: Choice, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        tokens, offsets, tops = [], [], []
        for each in logprobs:
            token = self._token(each.token_id)
            offsets.append(len(choice.echo) + choice.offset)
            choice.offset += len(token)
            tokens.append(token)
            top: dict[str, float] = {}
            for (
                token_id,
                logprob,
            ) in each.top:  # likeliest first: of two tokens with one text, the likelier stays
                top.setdefault(self._token(token_id), logprob)
            tops.append(top)
        return {
            "tokens": tokens,
            "token_logprobs": [each.logprob for each in logprobs],
            "top_logprobs": tops,
            "text_offset": offsets,
        }


class ChatFormat(_Shared):
    """`chat.completion` and `chat.completion.chunk`."""

    object_name = "chat.completion"
    event_name = "chat.completion.chunk"

    def event(self, choice: Choice, output: EngineOutput) -> bytes:
        """Text, and why it ended; before the first one, who speaks."""
        opening = b""
        if not choice.begun:
            choice.begun = True
            opening = b'%b%d,"delta":{"role":"assistant","content":""},"logprobs":null%b%b' % (
                self._prefix, choice.index, _FINISH[None], self._suffix,
            )  # fmt: skip
        if not output.text and output.finish is None and not output.logprobs:
            return opening
        delta = b'{"content":%b}' % _quoted(output.text).encode() if output.text else b"{}"
        logprobs = as_json(self._logprobs_of(output.logprobs)) if self._logprobs else b"null"
        return b'%b%b%d,"delta":%b,"logprobs":%b%b%b' % (
            opening, self._prefix, choice.index, delta, logprobs, _FINISH[output.finish], self._suffix,
        )  # fmt: skip

    def answer(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The whole answer."""
        shown = [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": "".join(choice.texts), "refusal": None},
                "logprobs": self._logprobs_of(choice.logprobs) if self._logprobs else None,
                "finish_reason": choice.finish,
            }
            for choice in choices
        ]
        return self._whole(shown, usage)

    def _logprobs_of(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        content = [
            {
                **self._entry(each.token_id, each.logprob),
                "top_logprobs": [self._entry(token_id, logprob) for token_id, logprob in each.top],
            }
            for each in logprobs
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        """A token; its bytes are known only where it is whole characters."""
        text = self._token(token_id)
        whole = "\ufffd" not in text
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}


_FINISH: dict[EngineFinish | None, bytes] = {
    None: b',"finish_reason":null',
    **{finish: b',"finish_reason":"%b"' % finish.encode() for finish in EngineFinish},
}
