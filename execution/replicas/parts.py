"""Outputs of one request that nobody has read yet, joined as they pile up."""

from __future__ import annotations

from itertools import chain

from loop.contracts.engine import EngineOutput

_MANY = 64


class Parts:
    """Consecutive outputs of one request. Takes hardly more memory than its answer."""

    __slots__ = ("_outputs",)

    def __init__(self) -> None:
        self._outputs: list[EngineOutput] = []

    def __bool__(self) -> bool:
        return bool(self._outputs)

    def add(self, output: EngineOutput) -> None:
        """One more."""
        self._outputs.append(output)
        if len(self._outputs) >= _MANY:
            self._outputs = [joined(self._outputs)]

    def take(self) -> EngineOutput:
        """All of them as one; there must be some."""
        outputs, self._outputs = self._outputs, []
        return outputs[0] if len(outputs) == 1 else joined(outputs)


def joined(outputs: list[EngineOutput]) -> EngineOutput:
    """Consecutive outputs of one request as one."""
    last = outputs[-1]
    return EngineOutput(
        last.request_id,
        tuple(chain.from_iterable(output.token_ids for output in outputs)),
        "".join(output.text for output in outputs),
        tuple(chain.from_iterable(output.logprobs for output in outputs)),
        last.finish,
        last.stop_reason,
        last.cached_tokens,
        last.scheduled_s,
    )
