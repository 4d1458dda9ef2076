"""How many requests are in flight, and letting no more in at a shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from loop.gateway.errors import RATE_LIMIT, ApiError, shutting_down


class Admission:
    """Counts requests from their headers to the end of their answers."""

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        self._open: dict[str, Callable[[Exception], None] | None] = {}
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def closed(self) -> bool:
        """True when nothing more is let in."""
        return self._closed

    @property
    def in_flight(self) -> int:
        """Requests now."""
        return len(self._open)

    @contextmanager
    def entered(self, key: str) -> Iterator[None]:
        """While a request is served. Raises ApiError: 503 when closed, 429 when full."""
        if self._closed:
            raise shutting_down()
        if len(self._open) >= self._max_in_flight:
            message = f"{self._max_in_flight} requests are in flight, the most there may be; try again soon."
            raise ApiError(429, message, kind=RATE_LIMIT, code="rate_limit_exceeded", retry_after_s=1.0)
        self._open[key] = None
        self._idle.clear()
        try:
            yield
        finally:
            del self._open[key]
            if not self._open:
                self._idle.set()

    def on_cut(self, key: str, fire: Callable[[Exception], None]) -> None:
        """How to end this request early."""
        if key in self._open:
            self._open[key] = fire

    def close(self) -> None:
        """Let nothing more in."""
        self._closed = True

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing is in flight; False when the time is up first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def cut(self) -> tuple[str, ...]:
        """End all that is in flight; their keys."""
        keys = tuple(self._open)
        for fire in list(self._open.values()):
            if fire is not None:
                fire(shutting_down())
        return keys
