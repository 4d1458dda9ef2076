"""While engines start the address answers, and nobody is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from execution.engines.tokenizer import ByteTokenizer
from loop.contracts import (
    EngineFinish,
    EngineOutput,
    Metric,
    ModelCard,
    SamplingParams,
    ServeRequest,
    UnavailableError,
)
from loop.runner.serving_backend import LateBackend

CARD = ModelCard("m", 100, 1, ready=False)
REQUEST = ServeRequest("r", "m", (1, 2), SamplingParams())


class Backend:
    """One that is there."""

    def models(self) -> tuple[ModelCard, ...]:
        return (ModelCard("m", 90, 1, ready=True),)

    def tokenizer(self, model: str) -> ByteTokenizer:
        return ByteTokenizer()

    async def serve(self, request: ServeRequest) -> AsyncIterator[EngineOutput]:
        yield EngineOutput(request.id, (3,), "c", finish=EngineFinish.STOP)

    def metrics(self) -> tuple[Metric, ...]:
        return (Metric("up", "gauge", "It is.", 1.0),)


def test_models_are_known_and_everything_else_waits():
    late = LateBackend((CARD,))
    assert late.models() == (CARD,)
    assert not list(late.metrics())
    with pytest.raises(UnavailableError, match="starting"):
        late.tokenizer("m")
    with pytest.raises(UnavailableError, match="starting"):
        late.serve(REQUEST)


def test_once_open_it_is_the_other_one():
    late = LateBackend((CARD,))
    late.open(Backend())

    async def served() -> list[str]:
        return [output.text async for output in late.serve(REQUEST)]

    assert asyncio.run(served()) == ["c"]
    assert late.models()[0].ready
    assert late.tokenizer("m").encode("a") == [97]
    assert [m.name for m in late.metrics()] == ["up"]
