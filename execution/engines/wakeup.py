"""How the reader of an answer waits for more of it."""

from __future__ import annotations

import asyncio


class Wakeup:
    """One reader that waits, and whoever wakes it; both on one event loop. Being woken early does no harm: the
    reader looks again."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Something has come."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        """Until the next `wake`."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
