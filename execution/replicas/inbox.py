"""One answer of a remote engine on its way to its reader."""

from __future__ import annotations

from execution.engines.wakeup import Wakeup
from execution.replicas.parts import Parts
from execution.replicas.protocol import Chunk
from loop.contracts.engine import EngineCrashedError, EngineOutput


class RemoteStream:
    """What has come and was not read yet, as one output: a slow reader takes no more memory than its answer."""

    __slots__ = ("_error", "_parts", "_wakeup", "number", "request_id")

    def __init__(self, number: int, request_id: str) -> None:
        self.number = number
        self.request_id = request_id
        self._parts = Parts()
        self._error: Exception | None = None
        self._wakeup = Wakeup()

    def push(self, chunk: Chunk) -> None:
        """More of it has come."""
        self._parts.add(
            EngineOutput(
                self.request_id,
                chunk.token_ids,
                chunk.text,
                chunk.logprobs,
                chunk.finish,
                chunk.stop_reason,
                chunk.cached_tokens,
                chunk.scheduled_s,
            )
        )
        self._wakeup.wake()

    def fail(self, error: Exception) -> None:
        """No more will come. What was not read yet is read first, unless the engine is gone."""
        self._error = error
        self._wakeup.wake()

    async def next(self) -> EngineOutput:
        """What came since the last call; waits for something. Raises what the engine raised."""
        while not self._parts and self._error is None:
            await self._wakeup.wait()
        if self._error is not None and (not self._parts or isinstance(self._error, EngineCrashedError)):
            raise self._error
        return self._parts.take()
