"""What one reader has not fetched yet. Belongs to the event loop."""

from __future__ import annotations

from execution.engines.torch.sequence import Sequence
from execution.engines.wakeup import Wakeup
from loop.contracts.engine import EngineError, EngineFinish, EngineOutput, TokenLogprob


class Stream:
    """Tokens on their way from the step thread to the reader of one request."""

    __slots__ = (
        "_error",
        "_finish",
        "_logprobs",
        "_reason",
        "_text",
        "_tokens",
        "_waiting",
        "_wakeup",
        "sequence",
    )

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self._tokens: list[int] = []
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish: EngineFinish | None = None
        self._reason: str | None = None
        self._error: EngineError | None = None
        self._wakeup = Wakeup()
        self._waiting = False  # something can be fetched

    def put(
        self,
        token: int | None,
        text: str,
        logprob: TokenLogprob | None,
        finish: EngineFinish | None,
        reason: str | None,
    ) -> None:
        """One more token, or the end."""
        if token is not None:
            self._tokens.append(token)
        if text:
            self._text.append(text)
        if logprob is not None:
            self._logprobs.append(logprob)
        if finish is not None:
            self._finish, self._reason = finish, reason
        self._wake()

    def fail(self, error: EngineError) -> None:
        """The reader gets what is there, then this."""
        self._error = error
        self._wake()

    async def next(self) -> EngineOutput:
        """All that came since the last call. Raises the error that it ended with."""
        while not self._waiting:
            await self._wakeup.wait()
        if not self._tokens and not self._text and self._finish is None and self._error is not None:
            raise self._error
        output = EngineOutput(
            self.sequence.request.id,
            tuple(self._tokens),
            "".join(self._text),
            tuple(self._logprobs),
            self._finish,
            self._reason,
            self.sequence.cached,
            self.sequence.scheduled_s,
        )
        self._tokens, self._text, self._logprobs = [], [], []
        self._waiting = self._error is not None
        return output

    def _wake(self) -> None:
        self._waiting = True
        self._wakeup.wake()
