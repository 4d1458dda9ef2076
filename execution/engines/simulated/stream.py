"""One answer on its way to its reader: the batch counts tokens, the reader makes them when it reads.

A slow reader costs nothing but a number: all tokens since its last look come in one output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from execution.engines.simulated.answer import Answer
from execution.engines.wakeup import Wakeup
from loop.contracts.engine import EngineError, EngineFinish, EngineOutput, EngineRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from execution.engines.simulated.batch import LiveSequence


class Stream:
    """Between the batch and the one reader of a request."""

    __slots__ = (
        "_given",
        "_made",
        "_over",
        "_wakeup",
        "answer",
        "cached",
        "error",
        "finish",
        "request",
        "scheduled_s",
        "seq",
    )

    def __init__(self, request: EngineRequest, answer: Answer, over: Callable[[Stream], None]) -> None:
        self.request = request
        self.answer = answer
        self.seq: LiveSequence | None = None
        self._over = over
        """Called once, with the last token."""
        self._given = self._made = answer.first
        """Positions: what the reader has, what the batch has made."""
        self._wakeup = Wakeup()
        self.cached = 0
        self.scheduled_s = 0.0
        self.finish: EngineFinish | None = None
        self.error: EngineError | None = None

    @property
    def made(self) -> int:
        """Tokens made here."""
        return self._made - self.answer.first

    def advance(self, cached: int = 0) -> None:
        """One more token. `cached` counts with the first one."""
        if self.finish is not None or self.error is not None:
            return  # cancelled: it leaves before the next step
        if self._made == self.answer.first:
            self.cached = cached
        self._made += 1
        if self._made >= self.answer.end:
            self.finish = self.answer.finish
            self._over(self)
        self._wakeup.wake()

    def end(self, finish: EngineFinish) -> None:
        """No more tokens."""
        self.finish = finish
        self._wakeup.wake()

    def fail(self, error: EngineError) -> None:
        """The reader gets this instead of what it has not read."""
        self.error = error
        self._wakeup.wake()

    async def next(self) -> EngineOutput:
        """What came since the last call; waits for something."""
        while self._made == self._given and self.finish is None and self.error is None:
            await self._wakeup.wait()
        if self.error is not None:
            raise self.error
        start, end = self._given, self._made
        self._given = end
        answer = self.answer
        count = self.request.sampling.logprobs
        finish = self.finish
        return EngineOutput(
            self.request.id,
            answer.tokens(start, end),
            answer.text(start, end),
            answer.logprobs(start, end, count) if count is not None else (),
            finish,
            answer.stop_reason if finish is EngineFinish.STOP else None,
            self.cached,
            self.scheduled_s,
        )
