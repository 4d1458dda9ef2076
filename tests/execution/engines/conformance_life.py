"""How an engine begins, ends, and does with little memory. Part of the suite in conformance.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import replace

import pytest

from loop.contracts.engine import (
    EngineCrashedError,
    EngineDrainingError,
    EngineError,
    EngineRequest,
)
from tests.execution.engines.rig import (
    LIMITS,
    Rig,
    aclose_after_one,
    answer,
    eventually,
    is_idle,
    long_request,
    read,
    request_of,
    waits,
)


class LifeConformance:
    """How an engine begins, ends, and does with little memory."""

    def test_drain_finishes_what_has_begun_and_takes_nothing_more(self, rig: Rig) -> None:
        async def check() -> None:
            async with rig.fresh() as engine:
                await engine.set_limits(replace(LIMITS, max_num_seqs=2))
                tasks = [
                    asyncio.ensure_future(answer(engine, request_of(engine, f"last {n}", max_tokens=200)))
                    for n in range(4)
                ]
                await eventually(lambda: waits(engine, at_least=1))
                drained = asyncio.ensure_future(engine.drain())

                async def refuses() -> bool:
                    try:
                        await aclose_after_one(engine)
                    except EngineDrainingError:
                        return True
                    return False

                await eventually(refuses)
                await drained
                await engine.stop()  # what was finished can still be read
                assert [len(whole.token_ids) for whole in await asyncio.gather(*tasks)] == [200] * 4

        rig.run(check())

    def test_stop_ends_everything(self, rig: Rig) -> None:
        async def check() -> None:
            async with rig.fresh() as engine:
                await engine.set_limits(replace(LIMITS, max_num_seqs=1))
                running = engine.generate(long_request(engine))
                await anext(running)
                waiting = asyncio.ensure_future(answer(engine, request_of(engine)))
                await eventually(lambda: waits(engine, 1))
                request = request_of(engine)
                await engine.stop()
                with pytest.raises(EngineCrashedError):
                    await read(running)
                with pytest.raises(EngineCrashedError):
                    await waiting
                with pytest.raises(EngineError):
                    await answer(engine, request)
                with pytest.raises(EngineCrashedError):
                    await engine.stats()
                await engine.stop()

        rig.run(check())

    def test_before_it_starts(self, rig: Rig) -> None:
        async def check() -> None:
            engine = rig.build()
            with pytest.raises(EngineError):
                await anext(engine.generate(EngineRequest("early", (1, 2, 3))))
            await engine.stop()
            await engine.stop()
            with pytest.raises(EngineError):
                await anext(engine.generate(EngineRequest("late", (1, 2, 3))))

        rig.run(check())

    def test_starting_twice_does_no_harm(self, rig: Rig) -> None:
        engine = rig.engine
        with contextlib.suppress(EngineError):
            rig.run(engine.start())
        assert len(rig.run(answer(engine, request_of(engine))).token_ids) == 16

    @pytest.mark.slow
    def test_little_memory_changes_no_answer(self, rig: Rig) -> None:
        if rig.kv_options is None:
            pytest.skip("this engine cannot be made so small")
        options = rig.kv_options

        async def check() -> None:
            async with rig.fresh(**options) as engine:
                capacity = engine.info.kv_capacity_tokens
                assert capacity <= 1024
                tokens = capacity // 4
                requests = [request_of(engine, f"{n} of many", max_tokens=tokens) for n in range(8)]
                together = await asyncio.gather(*(answer(engine, request) for request in requests))
                assert (await engine.stats()).preemptions > 0
                for request, whole in zip(requests, together, strict=True):
                    assert len(whole.token_ids) == tokens
                    assert whole.text == engine.tokenizer.decode(whole.token_ids)
                    assert (await answer(engine, request)).token_ids == whole.token_ids
                await eventually(lambda: is_idle(engine))

        rig.run(check())

    def test_killed(self, rig: Rig) -> None:
        async def check() -> None:
            async with rig.fresh() as engine:
                pid = getattr(engine, "pid", None)
                if pid is None:
                    pytest.skip("an engine in this process cannot be killed alone")
                await engine.set_limits(replace(LIMITS, max_num_seqs=2))
                request = request_of(engine)
                streams = [engine.generate(long_request(engine, f"doomed {n}")) for n in range(2)]
                for stream in streams:
                    await anext(stream)
                waiting = asyncio.ensure_future(answer(engine, request_of(engine)))
                await eventually(lambda: waits(engine, 1))
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(EngineCrashedError):
                    await waiting
                for stream in streams:
                    with pytest.raises(EngineCrashedError):
                        await read(stream)
                with pytest.raises(EngineCrashedError):
                    await engine.stats()
                with pytest.raises(EngineCrashedError):
                    await answer(engine, request)

        rig.run(check())
