"""What a worker has to say about its streams: the outputs of one step in one message.

While the parent reads too slowly nothing is written: what comes is joined to what waits, one record a stream, so
that no stream ever takes more memory than its answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from execution.replicas.parts import Parts
from execution.replicas.protocol import Chunk, Connection, Outputs
from loop.contracts.engine import EngineOutput


class Outbox:
    """Outputs on their way out."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, Parts] = {}
        self._due = False

    def put(self, stream: int, output: EngineOutput) -> None:
        """Goes out with all others of this turn of the loop."""
        parts = self._waiting.get(stream)
        if parts is None:
            parts = self._waiting[stream] = Parts()
        parts.add(output)
        if not self._due and not self._connection.congested:
            self._due = True
            self._loop.call_soon(self._flush)

    def settle(self) -> None:
        """Send what waits, however slow the reader."""
        self._due = False
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            self._connection.send(
                Outputs([_chunk(number, parts.take()) for number, parts in waiting.items()])
            )

    def _flush(self) -> None:
        self._due = False
        if not self._connection.congested:
            self.settle()
            self._connection.flush()


def _chunk(stream: int, output: EngineOutput) -> Chunk:
    return Chunk(
        stream,
        output.token_ids,
        output.text,
        output.finish,
        output.logprobs,
        output.stop_reason,
        output.cached_tokens,
        output.scheduled_s,
    )
