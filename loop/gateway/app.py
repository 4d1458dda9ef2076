"""The ASGI application: routes, who is let in, failures as answers, access log and metrics."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator

import structlog
from starlette.exceptions import HTTPException
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from loop.contracts.engine import Metric, ModelCard, ServingBackend
from loop.gateway.admission import Admission
from loop.gateway.config import GatewayConfig
from loop.gateway.errors import ApiError, ClientGoneError, as_json, from_failure, unknown_model
from loop.gateway.exchange import Exchange
from loop.gateway.metrics import CONTENT_TYPE, GatewayMetrics
from loop.gateway.openapi import published
from loop.gateway.protocol import Connections
from loop.gateway.schema import ChatRequest, CompletionRequest
from loop.gateway.serving import GenerateEndpoint

_EXCHANGE = "loop.gateway.exchange"
_LAST_WORDS_S = 2.0
"""How long an error may take to be written to a client that does not read."""
_log = structlog.get_logger(__name__)

Handler = Callable[[Exchange, int], Awaitable[None]]


class _Endpoint:
    """A handler behind a route."""

    def __init__(self, path: str, tier_of: Callable[[Exchange], int], handle: Handler) -> None:
        self._path = path
        self._tier_of = tier_of
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI
        exchange: Exchange = scope[_EXCHANGE]
        exchange.handler = self._path
        await self._handle(exchange, self._tier_of(exchange))


class GatewayApp:
    """OpenAI-compatible HTTP in front of a ServingBackend."""

    def __init__(
        self, backend: ServingBackend, config: GatewayConfig, admission: Admission, connections: Connections
    ) -> None:
        self._backend = backend
        self._config = config
        self._admission = admission
        self._connections = connections
        self.metrics = GatewayMetrics()
        make = (backend, config, admission, self.metrics)
        completions = GenerateEndpoint(CompletionRequest, *make)
        chat = GenerateEndpoint(ChatRequest, *make)
        metrics_tier = self._anyone if config.open_metrics else self._customer
        self._router = Router(
            [
                self._route("POST", "/v1/chat/completions", chat.handle, self._customer),
                self._route("POST", "/v1/completions", completions.handle, self._customer),
                self._route("GET", "/v1/models", self._models, self._customer),
                self._route("GET", "/v1/models/{model:path}", self._model, self._customer),
                self._route("GET", "/health", self._live, self._anyone),
                self._route("GET", "/health/live", self._live, self._anyone),
                self._route("GET", "/health/ready", self._ready, self._anyone),
                self._route("GET", "/metrics", self._metrics, metrics_tier),
                self._route("GET", "/openapi.json", self._document, self._anyone),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; never raises."""
        exchange = Exchange(scope, receive, send)
        scope["app"] = self  # the router then raises what it cannot route
        scope[_EXCHANGE] = exchange
        try:
            await self._router(scope, receive, send)
        except asyncio.CancelledError:
            exchange.abort()
            exchange.facts["error"] = "cancelled"
        except Exception as failure:  # noqa: BLE001  # every failure is an answer
            await self._failed(exchange, failure)
        finally:
            self._finish(exchange)

    async def _failed(self, exchange: Exchange, failure: Exception) -> None:
        """Tell the client as well as its connection's state allows."""
        if isinstance(failure, ClientGoneError):
            exchange.facts["error"] = "client gone"
            return
        error = _routing_error(failure) if isinstance(failure, HTTPException) else from_failure(failure)
        exchange.facts["error"] = error.code or type(failure).__name__
        if error.status == 500:  # a defect of ours or the engine's: where, but no values
            frames = "".join(traceback.format_tb(failure.__traceback__))
            _log.error(
                "request failed", request_id=exchange.request_id, kind=type(failure).__name__, frames=frames
            )
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                if not exchange.started:
                    await exchange.fail(error, linger=error.status == 413)
                elif not exchange.complete:
                    await exchange.write(b"data: " + error.body() + b"\n\n", last=True)
                    exchange.close()
        except Exception:  # noqa: BLE001  # the answer cannot be told: the connection says it
            exchange.abort()

    def _finish(self, exchange: Exchange) -> None:
        took_s = time.monotonic() - exchange.arrived_s
        method = exchange.scope["method"]
        labels = (("method", method if method in _METHODS else "other"), ("handler", exchange.handler))
        self.metrics.requests.add((*labels, ("status", str(exchange.status or 499))))
        self.metrics.duration.observe(labels, took_s)
        if not exchange.complete:
            self.metrics.cut.add(labels)
        _log.info(
            "request",
            request_id=exchange.request_id,
            client=(exchange.scope.get("client") or ("",))[0],
            method=method,
            handler=exchange.handler,
            status=exchange.status,
            complete=exchange.complete,
            duration_ms=round(1e3 * took_s, 3),
            **exchange.facts,
        )

    # ---- Who is let in ---------------------------------------------------------------------------------------------

    def _anyone(self, exchange: Exchange) -> int:  # noqa: ARG002  # as `_customer`
        return 0

    def _customer(self, exchange: Exchange) -> int:
        tier = self._config.tokens.tier(exchange.header(b"authorization"))
        if tier is None:
            message = "Incorrect or missing API key: send it as Authorization: Bearer KEY."
            raise ApiError(401, message, code="invalid_api_key", headers=((b"www-authenticate", b"Bearer"),))
        exchange.facts["tier"] = tier
        return tier

    # ---- What is answered at once ----------------------------------------------------------------------------------

    async def _models(self, exchange: Exchange, tier: int) -> None:  # noqa: ARG002
        cards = [_card(card) for card in self._backend.models()]
        await exchange.answer(200, as_json({"object": "list", "data": cards}))

    async def _model(self, exchange: Exchange, tier: int) -> None:  # noqa: ARG002
        name = exchange.scope["path_params"]["model"]
        for card in self._backend.models():
            if card.name == name:
                await exchange.answer(200, as_json(_card(card)))
                return
        raise unknown_model(name)

    async def _live(self, exchange: Exchange, tier: int) -> None:  # noqa: ARG002
        await exchange.answer(200, b'{"status":"ok"}')

    async def _ready(self, exchange: Exchange, tier: int) -> None:  # noqa: ARG002
        ready = [card.name for card in self._backend.models() if card.ready]
        if self._admission.closed:
            await exchange.answer(503, b'{"status":"shutting down"}')
        elif not ready:
            await exchange.answer(503, b'{"status":"no model is ready"}')
        else:
            await exchange.answer(200, as_json({"status": "ok", "models": ready}))

    async def _metrics(self, exchange: Exchange, tier: int) -> None:  # noqa: ARG002
        await exchange.answer(200, self.metrics.text(self._gauges(), self._backend.metrics()), CONTENT_TYPE)

    async def _document(self, exchange: Exchange, tier: int) -> None:  # noqa: ARG002
        await exchange.answer(200, published(secured=bool(self._config.tokens)))

    def _gauges(self) -> Iterator[Metric]:
        shared = self._connections
        yield Metric(
            "http_server_active_requests",
            "gauge",
            "Generation requests in flight.",
            self._admission.in_flight,
        )
        yield Metric("http_server_open_connections", "gauge", "Connections now.", shared.open)
        for reason, count in (
            ("no_room", shared.refused),
            ("headers_late", shared.timed_out),
            ("reader_stalled", shared.stalled),
        ):
            labels = (("reason", reason),)
            yield Metric(
                "http_server_dropped_connections_total", "counter", "Connections dropped.", count, labels
            )

    def _route(self, method: str, path: str, handle: Handler, tier_of: Callable[[Exchange], int]) -> Route:
        return Route(path, _Endpoint(path.replace(":path", ""), tier_of, handle), methods=[method])


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


def _card(card: ModelCard) -> dict[str, object]:
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "autopoiesis",
        "max_model_len": card.max_model_len,
        "ready": card.ready,
    }


def _routing_error(failure: HTTPException) -> ApiError:
    headers = tuple((key.lower().encode(), value.encode()) for key, value in (failure.headers or {}).items())
    message = {404: "There is nothing at this address.", 405: "This address does not take this method."}
    return ApiError(failure.status_code, message.get(failure.status_code, failure.detail), headers=headers)
