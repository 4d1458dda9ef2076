"""Ending a request's work from outside: its client is gone, its time is up, the server shuts down."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from loop.gateway.errors import ClientGoneError
from loop.gateway.exchange import Exchange


class Interrupt:
    """An async context whose body is cancelled by `fire`; the reason is then raised in the cancellation's place.

    Watches the client and the time itself. Cancellation by others passes through as it is, and once the answer is
    complete nothing is cancelled any more.
    """

    def __init__(self, exchange: Exchange, timeout_s: float, late: Exception) -> None:
        self._exchange = exchange
        self._timeout_s = timeout_s
        self._late = late
        self._reason: Exception | None = None
        self._task: asyncio.Task[object] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, self._timeout_s), self.fire, self._late)
        self._watch = loop.create_task(self._watch_client())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        self._timer.cancel()
        self._watch.cancel()
        if self._reason is None or task is None:
            return
        left = task.uncancel()
        if kind is asyncio.CancelledError and left == 0:
            raise self._reason from None

    def fire(self, reason: Exception) -> None:
        """End the body with this reason; the first one counts."""
        if self._task is not None and self._reason is None and not self._exchange.complete:
            self._reason = reason
            self._task.cancel()

    async def _watch_client(self) -> None:
        while (await self._exchange.receive())["type"] != "http.disconnect":
            pass
        self.fire(ClientGoneError())
