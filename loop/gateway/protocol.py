"""Connections: uvicorn's HTTP/1.1 protocol with the limits that it lacks.

Time and size of headers, the number of connections, and how long a reader may take nothing. What is below HTTP is
done here; everything above is an ASGI application that knows none of it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from loop.gateway.errors import SERVER, ApiError

ABORT = "loop.gateway.abort"
"""Key in the ASGI scope: a function that drops the connection at once."""
CLOSE = "loop.gateway.close"
"""Key in the ASGI scope: a function that closes the connection once all that was written is sent."""
_logger = logging.getLogger("loop.gateway.connection")
_logger.setLevel(logging.ERROR)  # what is no HTTP is answered, not warned of


@dataclass(slots=True)
class Connections:
    """Limits and state that all connections of a server share."""

    max_connections: int
    header_timeout_s: float
    body_timeout_s: float
    max_header_bytes: int
    write_stall_s: float
    write_buffer_bytes: int
    open: int = 0
    idle: dict[GatewayProtocol, None] = field(default_factory=dict)
    """Connections without a request, the longest idle first."""
    refused: int = 0
    """Connections dropped for lack of room."""
    timed_out: int = 0
    """Connections dropped since their headers took too long."""
    stalled: int = 0
    """Connections dropped since nobody read."""


class ConnectionConfig(uvicorn.Config):
    """uvicorn's configuration, with what the protocol needs."""

    shared: Connections


class GatewayProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: ConnectionConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = _logger
        self.access_log = False
        self._shared = config.shared
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._in_headers = True
        self._stall_timer: asyncio.TimerHandle | None = None
        self._stalled_bytes = 0

    def __hash__(self) -> int:
        return id(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room, and start the clock of the first headers."""
        super().connection_made(transport)
        shared = self._shared
        shared.open += 1
        transport.set_write_buffer_limits(high=shared.write_buffer_bytes)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if shared.open > shared.max_connections:
            shared.refused += 1
            if not shared.idle:
                self._refuse(ApiError(503, "Too many connections.", kind=SERVER, retry_after_s=1.0))
                return
            next(iter(shared.idle)).drop()
        shared.idle[self] = None
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Free all; the application learns of it as a disconnect."""
        self._shared.open -= 1
        self._shared.idle.pop(self, None)
        self._stop_header_timer()
        self._unset_keepalive_if_required()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close at once; what was not sent is lost."""
        self._shared.idle.pop(self, None)
        self.transport.abort()

    def close(self) -> None:
        """Close when all is sent, or nobody reads it."""
        self.transport.close()
        if self.transport.get_write_buffer_size() and self._stall_timer is None:
            self._watch_stall()

    def data_received(self, data: bytes) -> None:
        """Parse, and bound what comes before the end of the headers."""
        if self.parser is None or self.transport.is_closing():
            return
        if self._in_headers:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._header_bytes > self._shared.max_header_bytes:
            self._refuse(ApiError(431, f"Headers above {self._shared.max_header_bytes} bytes."))

    def on_message_begin(self) -> None:
        """Give the application a way to drop or close the connection."""
        super().on_message_begin()
        self.scope[ABORT] = self.drop  # type: ignore[literal-required]
        self.scope[CLOSE] = self.close  # type: ignore[literal-required]
        if self._header_timer is None:
            self._start_header_timer()

    def on_headers_complete(self) -> None:
        """A request begins."""
        self._in_headers = False
        self._shared.idle.pop(self, None)
        self._stop_header_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next bytes are another request's."""
        super().on_message_complete()
        self._stop_header_timer()
        self._in_headers = True
        self._header_bytes = 0

    def on_response_complete(self) -> None:
        """Idle again, unless another request waits behind."""
        super().on_response_complete()
        if self.transport.is_closing():
            self.close()
        elif self.cycle.response_complete:
            self._shared.idle[self] = None
            if not self._in_headers:  # answered before its body was all here: that may not go on for ever
                self._header_timer = self.loop.call_later(self._shared.body_timeout_s, self.drop)

    def pause_writing(self) -> None:
        """The reader is slower than the engine: watch that it reads at all."""
        super().pause_writing()
        self._watch_stall()

    def resume_writing(self) -> None:
        """The reader has caught up."""
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def timeout_keep_alive_handler(self) -> None:
        """Idle for too long."""
        self.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in OpenAI's form."""
        self._refuse(ApiError(400, msg))

    def _refuse(self, error: ApiError) -> None:
        """Answer without the application, and close."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started:
                self.drop()  # nothing can be said in the midst of an answer
                return
            cycle.disconnected = True  # this is the answer, the application's comes too late
            cycle.message_event.set()
        body = error.body()
        head = [
            f"HTTP/1.1 {error.status} {_PHRASES.get(error.status, 'Error')}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        ]
        head += [f"{name.decode()}: {value.decode()}" for name, value in error.headers()]
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self.close()

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(self._shared.header_timeout_s, self._headers_late)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_late(self) -> None:
        self._header_timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_header_timer()  # sent ahead while an answer is under way: its time has not come
            return
        self._shared.timed_out += 1
        self._refuse(ApiError(408, "The headers took too long."))

    def _watch_stall(self) -> None:
        self._stalled_bytes = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(self._shared.write_stall_s, self._stall_due)

    def _stall_due(self) -> None:
        if self.transport.get_write_buffer_size() < self._stalled_bytes:  # slow, but alive
            self._watch_stall()
            return
        self._stall_timer = None
        self._shared.stalled += 1
        self.drop()


_PHRASES = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
