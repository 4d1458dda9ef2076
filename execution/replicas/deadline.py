"""One timer for a whole answer: `asyncio.timeout` around each token costs more than all else that a token costs."""

from __future__ import annotations

import asyncio


class Deadline:
    """Interrupts the task that waits for a token when the answer's time is over; between two tokens, the next wait.

        with deadline:  # TimeoutError when it is over
            await token()

    A cancellation from elsewhere stays one (as in asyncio.timeout).
    """

    __slots__ = ("_cancelled", "_cancelling", "_handle", "_task", "over")

    def __init__(self, at_s: float | None) -> None:
        self.over = False
        self._cancelled = False
        self._cancelling = 0
        self._task: asyncio.Task[object] | None = None
        self._handle: asyncio.TimerHandle | None = None
        if at_s is not None:
            self._handle = asyncio.get_running_loop().call_at(at_s, self._fire)

    def close(self) -> None:
        """The answer is over; idempotent."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def __enter__(self) -> None:
        if self.over:
            raise TimeoutError
        task = self._task = asyncio.current_task()
        self._cancelling = task.cancelling() if task is not None else 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        task, self._task = self._task, None
        if self._cancelled:
            self._cancelled = False
            if task is not None and task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _fire(self) -> None:
        self.over = True
        if self._task is not None:
            self._cancelled = True
            self._task.cancel()
