"""A small HTTP/1.1 client for load tests: keep-alive connections, and answers handed on as they arrive.

Every piece of an answer is handled in the callback in which its bytes arrived: no task wakes up for it, so that
the time noted is the time of arrival, and thousands of pieces a second cost little. (httpx takes a good
millisecond a request and some 50 us a piece: at hundreds of streams the client would be the bottleneck.)
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from loop.loadtest.response import MalformedError, ResponseParser

Receiver = Callable[[bytes, float], None]
"""(some of the body, when it came in `time.monotonic()` seconds)."""


class HttpError(RuntimeError):
    """An answer that did not come, or not whole. `kind` is a word or two for a table of errors."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a URL leads: one server, and the path before the API's own."""

    host: str
    port: int
    tls: bool
    path: str

    @classmethod
    def of(cls, url: str) -> Origin:
        """From `http://host:8000`, with or without `/v1`. Raises ValueError for anything else."""
        text = url.strip()
        parts = urlsplit(text if "://" in text else f"http://{text}")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{url}: not a URL of a server; expected something like http://127.0.0.1:8000")
        if parts.query or parts.fragment or parts.username:
            raise ValueError(f"{url}: a URL of a server has no query, fragment or user name")
        try:
            port = parts.port
        except ValueError:
            raise ValueError(f"{url}: the port is not a number from 1 to 65535") from None
        tls = parts.scheme == "https"
        path = parts.path.rstrip("/")
        path = path.removesuffix("/v1") if path.endswith("/v1") else path
        return cls(parts.hostname, port or (443 if tls else 80), tls, path)

    @property
    def text(self) -> str:
        """As a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.path}"


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and headers of a complete answer; `body` unless a receiver took it."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(slots=True)
class _Exchange:
    """One request under way on a connection."""

    future: asyncio.Future[Answer]
    receiver: Receiver | None
    """Takes the body of a 200; other bodies are collected, since they say what is wrong."""
    collected: list[bytes] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = ResponseParser()
        self._exchange: _Exchange | None = None
        self.usable = True
        self.heard = False
        """Something of the answer has come."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TCP gives nothing else
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        exchange = self._exchange
        if exchange is None:  # nothing was asked: whatever it is, this connection is not to be used again
            self.abort()
            return
        now_s = time.monotonic()
        self.heard = True
        parser = self._parser
        try:
            body = parser.feed(data)
            if body:
                if exchange.receiver is not None and parser.status == 200:
                    exchange.receiver(body, now_s)
                else:
                    exchange.collected.append(body)
        except (MalformedError, HttpError) as error:
            self.abort()
            self._fail(error if isinstance(error, HttpError) else HttpError("malformed", str(error)))
            return
        if parser.done:
            self._finish(exchange)

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed by either side."""
        self.usable = False
        exchange = self._exchange
        if exchange is None:
            return
        try:
            self._parser.end()
        except MalformedError as error:
            reason = f"{exc}" if exc else str(error)
            self._fail(HttpError("disconnected", reason))
        else:
            self._finish(exchange)

    async def exchange(self, request: bytes, receiver: Receiver | None) -> Answer:
        """Send a request and wait for the end of the answer. Cancelling closes the connection. Raises HttpError."""
        if self._transport is None or not self.usable:
            raise HttpError("disconnected", "the connection was closed before the request was sent")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._exchange = _Exchange(future, receiver)
        self._parser.reset()
        self.heard = False
        self._transport.write(request)
        try:
            return await future
        except asyncio.CancelledError:
            self.abort()
            raise

    def abort(self) -> None:
        """Close at once; the server sees a client that is gone."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def _finish(self, exchange: _Exchange) -> None:
        self._exchange = None
        parser = self._parser
        self.usable = self.usable and parser.keep_alive
        if not self.usable and self._transport is not None:
            self._transport.close()
        if not exchange.future.done():
            answer = Answer(parser.status, parser.headers, b"".join(exchange.collected))
            exchange.future.set_result(answer)

    def _fail(self, error: HttpError) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None and not exchange.future.done():
            exchange.future.set_exception(error)


class Client:
    """Requests to one server, over connections that are opened as needed and used again."""

    def __init__(self, origin: Origin, token: str | None = None, *, connect_timeout_s: float = 10.0) -> None:
        self.origin = origin
        self._connect_timeout_s = connect_timeout_s
        self._ssl = ssl.create_default_context() if origin.tls else None
        self._idle: list[Connection] = []
        self.opened = 0
        """Connections so far."""
        bearer = f"Authorization: Bearer {token}\r\n" if token else ""
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        self._headers = f"Host: {host}:{origin.port}\r\nUser-Agent: autopoiesis-loadtest\r\n{bearer}"

    async def get(self, path: str, *, timeout_s: float) -> Answer:
        """GET of a small answer. Raises HttpError."""
        request = f"GET {self.origin.path}{path} HTTP/1.1\r\n{self._headers}Accept: application/json\r\n\r\n"
        return await self._send(request.encode(), None, timeout_s)

    async def post(self, path: str, body: bytes, receiver: Receiver | None, *, timeout_s: float) -> Answer:
        """POST of a JSON body; `receiver` gets the answer's body piece by piece. Raises HttpError."""
        head = (
            f"POST {self.origin.path}{path} HTTP/1.1\r\n{self._headers}Content-Type: application/json\r\n"
            f"Accept: text/event-stream, application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return await self._send(head.encode() + body, receiver, timeout_s)

    def close(self) -> None:
        """Close what is idle. Requests under way are cancelled by cancelling their tasks."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    async def _send(self, request: bytes, receiver: Receiver | None, timeout_s: float) -> Answer:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    connection, fresh = await self._connection()
                    try:
                        answer = await connection.exchange(request, receiver)
                        break
                    except HttpError:
                        # A server may close an idle connection just as it is used again (RFC 9112, 9.3.1).
                        if fresh or connection.heard:
                            raise
        except TimeoutError:
            raise HttpError("timeout", f"no complete answer within {timeout_s:g} s") from None
        if connection.usable:
            self._idle.append(connection)
        return answer

    async def _connection(self) -> tuple[Connection, bool]:
        """An open connection, and whether it is a new one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection, False
        origin = self.origin
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connection, origin.host, origin.port, ssl=self._ssl
                )
        except TimeoutError:
            message = f"{origin.text}: no connection within {self._connect_timeout_s:g} s"
            raise HttpError("connect", message) from None
        except OSError as error:
            raise HttpError("connect", f"{origin.text}: {error.strerror or error}") from None
        self.opened += 1
        return connection, True
