"""One HTTP request and its answer: its id, what may be logged of it, and how its answer is sent."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import Message, Receive, Scope, Send

from loop.gateway.errors import ApiError, ClientGoneError
from loop.gateway.protocol import ABORT, CLOSE

Header = tuple[bytes, bytes]
JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"
_STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
_random = random.Random()  # ids need to be unique, not secret
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")
LINGER_BYTES = 64 << 20
"""What is read, and thrown away, of a body that is too large, so that its sender can read why."""


@dataclass(slots=True)
class Exchange:
    """State of one request."""

    scope: Scope
    receive: Receive
    raw_send: Send
    arrived_s: float = field(default_factory=time.monotonic)
    id: str = field(default_factory=lambda: f"{_random.getrandbits(96):024x}")
    """Unique in this server."""
    request_id: str = ""
    """What the client calls it, if that can be logged; else `id`."""
    status: int = 0
    started: bool = False
    complete: bool = False
    handler: str = "other"
    """The route, for logs and metrics."""
    facts: dict[str, object] = field(default_factory=dict)
    """What is logged at the end; nothing of prompts, answers or tokens of access."""

    def __post_init__(self) -> None:
        given = self.header(b"x-request-id")
        self.request_id = given.decode() if given and _REQUEST_ID.fullmatch(given) else self.id

    def header(self, name: bytes) -> bytes | None:
        """The first header of this (lower-case) name."""
        for key, value in self.scope["headers"]:
            if key == name:
                return bytes(value)
        return None

    async def start(
        self, status: int, content_type: bytes, *headers: Header, length: int | None = None
    ) -> None:
        """Status and headers."""
        self.started = True
        self.status = status
        sent = [(b"content-type", content_type), (b"x-request-id", self.request_id.encode()), *headers]
        if length is not None:
            sent.append((b"content-length", b"%d" % length))
        await self.raw_send({"type": "http.response.start", "status": status, "headers": sent})

    async def write(self, body: bytes, *, last: bool) -> None:
        """A piece of the body; waits while the reader is slow."""
        await self.raw_send({"type": "http.response.body", "body": body, "more_body": not last})
        self.complete = last

    async def stream(self, events: bytes, last: bool) -> None:  # noqa: FBT001  # called for each token
        """Server-sent events; the first call begins the answer."""
        if not self.started:
            await self.start(200, EVENT_STREAM, *_STREAM_HEADERS)
        await self.raw_send({"type": "http.response.body", "body": events, "more_body": not last})
        self.complete = last

    async def answer(self, status: int, body: bytes, content_type: bytes = JSON, *headers: Header) -> None:
        """A whole answer."""
        await self.start(status, content_type, *headers, length=len(body))
        await self.write(body, last=True)

    async def fail(self, error: ApiError, *, linger: bool = False) -> None:
        """An answer that is an error; `linger`: read on a while, so that the client can read it."""
        body = error.body()
        await self.start(error.status, JSON, *error.headers(), length=len(body))
        if linger:
            await self.write(body, last=False)
            await self._throw_away()
            body = b""
        await self.write(body, last=True)

    async def body(self, limit_bytes: int) -> bytes:
        """The request's body. Raises ApiError 413, ClientGoneError."""
        told = self.header(b"content-length")
        if told is not None and int(told) > limit_bytes:  # the parser has seen to it that it is a number
            raise _too_large(limit_bytes)
        message = await self.receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            first: bytes = message["body"]
            if len(first) <= limit_bytes:
                return first
        parts = bytearray()
        while True:
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            parts += message["body"]
            if len(parts) > limit_bytes:
                raise _too_large(limit_bytes)
            if not message["more_body"]:
                return bytes(parts)
            message = await self.receive()

    def abort(self) -> None:
        """Drop the connection."""
        self._call(ABORT)

    def close(self) -> None:
        """Close the connection after what was written."""
        self._call(CLOSE)

    def _call(self, key: str) -> None:
        function: Callable[[], None] | None = self.scope.get(key)
        if function is not None:
            function()

    async def _throw_away(self) -> None:
        left = LINGER_BYTES
        while left > 0:
            message: Message = await self.receive()
            if message["type"] == "http.disconnect" or not message["more_body"]:
                return
            left -= len(message["body"])


def _too_large(limit_bytes: int) -> ApiError:
    return ApiError(
        413, f"The body is larger than {limit_bytes} bytes.", code="request_too_large", close=True
    )
