"""The gateway as a running server: listen, serve, and go down without dropping what is in flight."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog
import uvicorn

from loop.contracts.engine import ServingBackend
from loop.gateway.admission import Admission
from loop.gateway.app import GatewayApp
from loop.gateway.config import GatewayConfig
from loop.gateway.protocol import ConnectionConfig, Connections, GatewayProtocol

BACKLOG = 4096
OTHER_FILES = 256
"""Open files left to the rest of the process."""
MAX_CONNECTIONS = 65_536
_CUT_S = 3.0
"""What was cut may take so long to say so to its client."""
_FLUSH_S = 1.0
"""What was written may take so long to be read."""
_log = structlog.get_logger(__name__)


class GatewayError(RuntimeError):
    """The gateway cannot run as it is configured; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ShutdownReport:
    """What became of the requests in flight at a shutdown."""

    finished: int
    cut: tuple[str, ...]
    """Ids of requests that were ended before their time."""


class Gateway:
    """An OpenAI-compatible HTTP server over a backend, inside the running event loop.

    async with Gateway(backend, GatewayConfig(port=0)) as gateway:
        ... gateway.url ...
    """

    def __init__(self, backend: ServingBackend, config: GatewayConfig | None = None) -> None:
        self._config = config or GatewayConfig()
        self._backend = backend
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped: asyncio.Task[ShutdownReport] | None = None
        self._stopping = asyncio.Event()
        self._url = ""
        self._admission = Admission(self._config.max_in_flight)

    @property
    def url(self) -> str:
        """`http://HOST:PORT`, once started; the API is below /v1."""
        return self._url

    @property
    def in_flight(self) -> int:
        """Requests being served."""
        return self._admission.in_flight

    def connections_now(self) -> tuple[GatewayProtocol, ...]:
        """All connections."""
        state = None if self._server is None else self._server.server_state
        return tuple(
            each for each in (state.connections if state else ()) if isinstance(each, GatewayProtocol)
        )

    async def start(self) -> None:
        """Listen. Raises GatewayError."""
        if self._task is not None:
            raise GatewayError("this gateway was started already; make another one")
        config = self._config
        _check_reach(config)
        listening = _listen(config.host, config.port)
        self._url = _url(config.host, listening.getsockname()[1])
        self.connections = Connections(
            max_connections=config.max_connections or _room_for_connections(),
            header_timeout_s=config.header_timeout_s,
            body_timeout_s=config.body_timeout_s,
            max_header_bytes=config.max_header_bytes,
            write_stall_s=config.write_stall_s,
            write_buffer_bytes=config.write_buffer_bytes,
        )
        app = GatewayApp(self._backend, config, self._admission, self.connections)
        self._server = _Server(_uvicorn_config(app, config, self.connections))
        self._task = asyncio.create_task(self._server.serve(sockets=[listening]), name="gateway")
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise GatewayError(f"the server at {self._url} ended before it began")
            await asyncio.sleep(0.001)
        _log.info("gateway listens", url=self._url, tokens=bool(config.tokens))

    async def serve_forever(self) -> ShutdownReport:
        """Serve until `request_stop` is called (by a signal handler, say), then shut down gracefully."""
        if self._task is None:
            await self.start()
        await self._stopping.wait()
        return await self.stop()

    def request_stop(self) -> None:
        """Let `serve_forever` shut down."""
        self._stopping.set()

    async def stop(self, within_s: float | None = None) -> ShutdownReport:
        """Refuse what is new (503), finish what is in flight within `within_s` (None: as configured), cut the rest.

        Idempotent. New connections are answered until the last request is done, then refused.
        """
        if self._task is None:
            return ShutdownReport(0, ())
        if self._stopped is None:
            limit_s = self._config.shutdown_s if within_s is None else within_s
            self._stopped = asyncio.create_task(self._stop(limit_s))
        return await asyncio.shield(self._stopped)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _stop(self, limit_s: float) -> ShutdownReport:
        server, task = self._server, self._task
        if server is None or task is None:
            return ShutdownReport(0, ())
        self._stopping.set()
        self._admission.close()
        open_at_first = self._admission.in_flight
        cut: tuple[str, ...] = ()
        if not await self._admission.wait_idle(limit_s):
            cut = self._admission.cut()
            _log.warning("requests cut at shutdown", count=len(cut), after_s=limit_s, ids=cut[:20])
        server.exit.set()
        await task
        _log.info("gateway stopped", finished=open_at_first - len(cut), cut=len(cut))
        return ShutdownReport(open_at_first - len(cut), cut)


class _Server(uvicorn.Server):
    """uvicorn inside somebody else's loop: signals are the caller's, and it ends when it is told to, not at a tick."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.exit = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def main_loop(self) -> None:
        """Renew the date header each second, until the end."""
        counter = 0
        while not self.exit.is_set():
            await self.on_tick(counter)
            counter += 10  # uvicorn counts tenths of a second
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.exit.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close what listens and what is idle; wait for the last answers a little, then drop them."""
        for server in self.servers:
            server.close()
        for sock in sockets or []:
            sock.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=_CUT_S)
        patience = asyncio.get_running_loop().time() + _FLUSH_S
        while state.connections and asyncio.get_running_loop().time() < patience:
            await asyncio.sleep(0.002)  # what was written is still being sent
        for connection in list(state.connections):
            connection.transport.abort()
        for task in list(state.tasks):
            task.cancel()
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=_CUT_S)
        for server in self.servers:
            await server.wait_closed()


def _uvicorn_config(app: GatewayApp, config: GatewayConfig, shared: Connections) -> ConnectionConfig:
    made = ConnectionConfig(
        app,
        http=GatewayProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=max(1, round(config.keep_alive_s)),
        timeout_graceful_shutdown=1,
    )
    made.shared = shared
    return made


def _check_reach(config: GatewayConfig) -> None:
    """Without tokens, this machine alone. Raises GatewayError."""
    if config.tokens or config.allow_open:
        return
    try:
        found = socket.getaddrinfo(config.host or None, config.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise GatewayError(f"unknown host {config.host!r}: {error}") from error
    addresses = {str(entry[4][0]).partition("%")[0] for entry in found}
    if not config.host or not all(ipaddress.ip_address(address).is_loopback for address in addresses):
        raise GatewayError(
            f"{config.host or 'all interfaces'} can be reached from other machines, and no tokens are configured: "
            "configure tokens, listen on 127.0.0.1, or set allow_open to serve everybody"
        )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][
            0
        ]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        raise GatewayError(f"cannot listen on {host}:{port}: {error}") from error


def _url(host: str, port: int) -> str:
    name = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # to be named, not bound
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _room_for_connections() -> int:
    """What the limit of open files leaves; the limit is raised as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or soft < hard):
        wanted = MAX_CONNECTIONS + OTHER_FILES if hard == resource.RLIM_INFINITY else hard
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(16, min(MAX_CONNECTIONS, soft - OTHER_FILES))
