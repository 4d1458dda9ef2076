"""What the conformance suite of engines works with: an engine on an event loop, and requests to it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol, TypeVar

import pytest

from loop.contracts.engine import (
    Engine,
    EngineFeature,
    EngineFinish,
    EngineLimits,
    EngineOutput,
    EngineRequest,
    SamplingParams,
)

T = TypeVar("T")
LIMITS = EngineLimits(max_num_seqs=16, max_num_batched_tokens=256, max_waiting=256)
"""Engines under test are built with these."""
PATIENCE_S = 150.0
"""For what must happen soon; a miss is a failure, not a wait."""
_ids = count()


class Build(Protocol):
    """Makes an engine that has not started."""

    def __call__(self, **options: str | float | bool) -> Engine: ...


class Rig:
    """An event loop and an engine that many tests share."""

    def __init__(self, build: Build, *, kv_options: dict[str, str | float | bool] | None = None) -> None:
        self.build = build
        self.kv_options = kv_options
        """Options by which the KV cache holds some 512 tokens; None: this engine cannot be made so small."""
        self._runner = asyncio.Runner()
        self._engine: Engine | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to its end on the engine's loop."""
        return self._runner.run(_within(work))

    @property
    def engine(self) -> Engine:
        """The shared one, started, with its limits as built."""
        if self._engine is None:
            engine = self.build()
            self.run(engine.start())
            self._engine = engine
        self.run(self._engine.set_limits(LIMITS))
        return self._engine

    @contextlib.asynccontextmanager
    async def fresh(self, **options: str | float | bool) -> AsyncIterator[Engine]:
        """An engine of one's own, started."""
        engine = self.build(**options)
        try:
            await engine.start()
            yield engine
        finally:
            await engine.stop()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._engine is not None:
                self.run(self._engine.stop())
        finally:
            self._runner.close()


async def _within(work: Awaitable[T]) -> T:
    async with asyncio.timeout(4 * PATIENCE_S):
        return await work


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer, put together."""

    outputs: tuple[EngineOutput, ...]
    token_ids: tuple[int, ...]
    text: str
    finish: EngineFinish | None

    @classmethod
    def of(cls, outputs: Iterable[EngineOutput]) -> Whole:
        parts = tuple(outputs)
        return cls(
            parts,
            tuple(token for part in parts for token in part.token_ids),
            "".join(part.text for part in parts),
            parts[-1].finish if parts else None,
        )


def request_of(engine: Engine, text: str = "The quick brown fox", **sampling: Any) -> EngineRequest:
    """A greedy request that ends at `max_tokens` (16), unless told otherwise."""
    params = SamplingParams(**{"max_tokens": 16, "temperature": 0.0, "ignore_eos": True, **sampling})
    return EngineRequest(new_id(), tuple(engine.tokenizer.encode(text)), params)


def long_request(engine: Engine, text: str = "A long story") -> EngineRequest:
    """One that goes on until the context is full."""
    return request_of(engine, text, max_tokens=engine.info.max_model_len)


async def answer(engine: Engine, request: EngineRequest) -> Whole:
    """All of it."""
    outputs = [output async for output in engine.generate(request)]
    assert [output.finish is not None for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert {output.request_id for output in outputs} == {request.id}
    return Whole.of(outputs)


async def eventually(what: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it is so."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not await what():
        assert time.monotonic() < deadline_s, "it never came"
        await asyncio.sleep(0.002)


async def is_idle(engine: Engine) -> bool:
    """Holds no request."""
    stats = await engine.stats()
    return stats.running == 0 and stats.waiting == 0


async def waits(engine: Engine, requests: int | None = None, *, at_least: int = 0) -> bool:
    """So many are in the queue."""
    waiting = (await engine.stats()).waiting
    return waiting >= at_least if requests is None else waiting == requests


def new_id() -> str:
    """Of a request."""
    return f"r{next(_ids)}"


@contextlib.asynccontextmanager
async def blocked(engine: Engine) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """One seat, taken by a long answer until the yielded function is called."""
    await engine.set_limits(replace(LIMITS, max_num_seqs=1))
    request = long_request(engine)
    stream = engine.generate(request)
    await anext(stream)

    async def let_go() -> None:
        await engine.cancel(request.id)

    try:
        yield let_go
    finally:
        await aclose(stream)
        await engine.set_limits(LIMITS)
        await eventually(lambda: is_idle(engine))


async def aclose(stream: AsyncIterator[EngineOutput]) -> None:
    """Close an iterator before its end."""
    await stream.aclose()  # type: ignore[attr-defined]


def needs(engine: Engine, feature: EngineFeature) -> None:
    """Skip where the engine does not claim to have it."""
    if feature not in engine.info.features:
        pytest.skip(f"the {engine.info.engine} engine does not claim {feature.value}")


def clean_piece(text: str, length: int, start: int) -> str:
    """A stretch of text without replacement characters that does not occur before itself."""
    for at in range(start, len(text) - length):
        piece = text[at : at + length]
        if "\ufffd" not in piece and text.find(piece) >= start:
            return piece
    pytest.fail(f"no {length} whole characters after position {start} in {text!r}")


async def aclose_after_one(engine: Engine) -> None:
    """Ask for something and leave."""
    stream = engine.generate(request_of(engine))
    try:
        await anext(stream)
    finally:
        await aclose(stream)


async def read(stream: AsyncIterator[EngineOutput]) -> None:
    async for _ in stream:
        pass
