"""An OpenAI-compatible streamed answer: when its pieces came, what the server counted, what went wrong."""

from __future__ import annotations

import json
from array import array
from typing import Any

from loop.loadtest.http1 import HttpError
from loop.loadtest.response import EventParser


class Stream:
    """Takes the body of one answer, piece by piece."""

    __slots__ = ("_events", "_gaps", "finished", "first_s", "last_s", "pieces", "usage")

    def __init__(self, gaps: array[float]) -> None:
        """`gaps` gets the times between pieces, in seconds."""
        self._events = EventParser()
        self._gaps = gaps
        self.first_s = -1.0
        self.last_s = -1.0
        self.pieces = 0
        self.finished = False
        """A finish reason, or the end of the stream, has come."""
        self.usage: dict[str, Any] = {}

    def receive(self, body: bytes, now_s: float) -> None:
        """Some of the body. Raises HttpError for what is no such stream, or says that the server failed."""
        for event in self._events.feed(body):
            if event == b"[DONE]":
                self.finished = True
                continue
            try:
                value = json.loads(event)
            except ValueError:
                raise HttpError("malformed", f"an event is not JSON: {event[:80]!r}") from None
            if not isinstance(value, dict):
                raise HttpError("malformed", f"an event is no object: {event[:80]!r}")
            self._event(value, now_s)

    def _event(self, value: dict[str, Any], now_s: float) -> None:
        if value.get("error"):
            raise HttpError("error in stream", error_text(value))
        usage = value.get("usage")
        if isinstance(usage, dict):
            self.usage = usage
        choices = value.get("choices")
        if not isinstance(choices, list):
            return
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            if choice.get("finish_reason"):
                self.finished = True
            if _says_something(choice):
                if self.first_s < 0.0:
                    self.first_s = now_s
                else:
                    self._gaps.append(now_s - self.last_s)
                self.last_s = now_s
                self.pieces += 1


def _says_something(choice: dict[str, Any]) -> bool:
    """Whether a choice holds something of an answer. A chat opens with a piece that holds the role alone."""
    text = choice.get("text")
    if text:
        return True
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return any(delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls"))
    return isinstance(text, str) and not choice.get("finish_reason")  # a token that is no whole character yet


def error_text(value: Any) -> str:
    """The message in an OpenAI error object, shortened; else what there is."""
    error = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return " ".join(str(error).split())[:300]
