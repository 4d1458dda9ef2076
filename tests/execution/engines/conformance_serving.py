"""Many requests side by side: who leaves, who waits, and what is refused. Part of the suite in conformance.py."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest

from loop.contracts.engine import (
    EngineBusyError,
    EngineFeature,
    EngineFinish,
    EngineRequestError,
)
from tests.execution.engines.rig import (
    LIMITS,
    Rig,
    Whole,
    aclose,
    answer,
    blocked,
    eventually,
    is_idle,
    long_request,
    needs,
    read,
    request_of,
    waits,
)


class ServingConformance:
    """Many requests side by side: who leaves, who waits, and what is refused."""

    # -- leaving early ------------------------------------------------------------------------------

    @pytest.mark.parametrize("way", ["cancel", "close", "task"])
    def test_who_leaves_frees_what_he_held(self, rig: Rig, way: str) -> None:
        engine = rig.engine

        async def check() -> None:
            await answer(
                engine, request_of(engine, "A long story", max_tokens=1)
            )  # its prefix may stay cached
            await eventually(lambda: is_idle(engine))
            held = (await engine.stats()).kv_tokens
            request = long_request(engine)
            stream = engine.generate(request)
            for _ in range(3):
                await anext(stream)
            if way == "cancel":
                await engine.cancel(request.id)
                rest = Whole.of([output async for output in stream])
                assert rest.finish is EngineFinish.CANCELLED
            elif way == "close":
                await aclose(stream)
            else:
                reader = asyncio.ensure_future(read(stream))
                await asyncio.sleep(0)
                reader.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await reader
            await eventually(lambda: is_idle(engine))
            assert (await engine.stats()).kv_tokens <= held + engine.info.block_tokens
            assert len((await answer(engine, request_of(engine))).token_ids) == 16

        rig.run(check())

    def test_unknown_ids_cannot_be_cancelled(self, rig: Rig) -> None:
        engine = rig.engine
        rig.run(engine.cancel("nobody"))
        done = request_of(engine)
        rig.run(answer(engine, done))
        rig.run(engine.cancel(done.id))
        assert len(rig.run(answer(engine, request_of(engine))).token_ids) == 16

    def test_who_waits_may_leave_too(self, rig: Rig) -> None:
        engine = rig.engine

        async def check() -> None:
            async with blocked(engine):
                cancelled, left = request_of(engine), request_of(engine)
                one = asyncio.ensure_future(answer(engine, cancelled))
                other = asyncio.ensure_future(answer(engine, left))
                await eventually(lambda: waits(engine, 2))
                await engine.cancel(cancelled.id)
                whole = await one
                assert (whole.token_ids, whole.finish) == ((), EngineFinish.CANCELLED)
                other.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await other
                await eventually(lambda: waits(engine, 0))

        rig.run(check())

    @pytest.mark.slow
    def test_a_slow_reader_holds_up_nobody(self, rig: Rig) -> None:
        engine = rig.engine

        async def check() -> None:
            slow = request_of(engine, "slow", max_tokens=200)
            stream = engine.generate(slow)
            parts = [await anext(stream)]
            for _ in range(3):
                await asyncio.gather(
                    *(answer(engine, request_of(engine, f"fast {n}", max_tokens=100)) for n in range(4))
                )
            parts += [part async for part in stream]
            assert (
                Whole.of(parts).token_ids == (await answer(engine, replace(slow, id="slow again"))).token_ids
            )
            assert Whole.of(parts).text == engine.tokenizer.decode(Whole.of(parts).token_ids)

        rig.run(check())

    # -- queue and limits ---------------------------------------------------------------------------

    def test_priority_then_arrival_then_submission(self, rig: Rig) -> None:
        engine = rig.engine
        needs(engine, EngineFeature.PRIORITY)
        keys = [(2.0, 1.0), (1.0, 9.0), (1.0, 3.0), (0.5, 5.0), (2.0, 1.0), (-1.0, 7.0)]
        order: list[int] = []

        async def one(number: int) -> None:
            priority, arrival_s = keys[number]
            request = request_of(engine, f"key {number}", max_tokens=4)
            await answer(engine, replace(request, priority=priority, arrival_s=arrival_s))
            order.append(number)

        async def check() -> None:
            async with blocked(engine) as let_go:
                tasks = []
                for number in range(len(keys)):
                    tasks.append(asyncio.ensure_future(one(number)))
                    await eventually(lambda queued=number + 1: waits(engine, queued))
                await let_go()
                await asyncio.gather(*tasks)

        rig.run(check())
        assert order == [5, 3, 2, 1, 0, 4]

    def test_a_full_queue_refuses(self, rig: Rig) -> None:
        engine = rig.engine

        async def check() -> None:
            async with blocked(engine) as let_go:
                await engine.set_limits(replace(LIMITS, max_num_seqs=1, max_waiting=2))
                tasks = []
                for queued in (1, 2):
                    tasks.append(asyncio.ensure_future(answer(engine, request_of(engine))))
                    await eventually(lambda queued=queued: waits(engine, queued))
                refused = request_of(engine)
                with pytest.raises(EngineBusyError):
                    await answer(engine, refused)
                await let_go()
                assert [len(whole.token_ids) for whole in await asyncio.gather(*tasks)] == [16, 16]
                assert len((await answer(engine, refused)).token_ids) == 16

        rig.run(check())

    def test_limits_change_while_it_runs(self, rig: Rig) -> None:
        engine = rig.engine

        async def check() -> None:
            streams = [engine.generate(long_request(engine, f"story {n}")) for n in range(4)]
            for stream in streams[:2]:
                await anext(stream)
            await engine.set_limits(replace(LIMITS, max_num_seqs=2))
            later = [asyncio.ensure_future(anext(stream)) for stream in streams[2:]]
            await eventually(lambda: waits(engine, 2))
            assert (await engine.stats()).running == 2
            assert (await engine.stats()).limits.max_num_seqs == 2
            for stream in streams[:2]:  # those that run go on
                await anext(stream)
            await engine.set_limits(LIMITS)
            await asyncio.gather(*later)
            assert (await engine.stats()).running == 4
            for stream in streams:
                await aclose(stream)

        rig.run(check())

    def test_limits_below_one_are_refused(self, rig: Rig) -> None:
        engine = rig.engine
        for wrong in ({"max_num_seqs": 0}, {"max_num_batched_tokens": 0}, {"max_num_seqs": -1}):
            with pytest.raises(ValueError, match="max_num"):
                rig.run(engine.set_limits(replace(LIMITS, **wrong)))
        assert rig.run(engine.stats()).limits == LIMITS

    def test_counters(self, rig: Rig) -> None:
        engine = rig.engine

        async def check() -> None:
            await eventually(lambda: is_idle(engine))
            before = await engine.stats()
            request = request_of(engine, "to be counted", max_tokens=20)
            await answer(engine, request)
            await eventually(lambda: is_idle(engine))
            after = await engine.stats()
            assert after.generated_tokens - before.generated_tokens == 20
            assert after.prompt_tokens - before.prompt_tokens == len(request.prompt_token_ids)
            assert after.finished - before.finished == 1
            assert after.steps - before.steps >= 20
            assert after.step_s > before.step_s
            assert after.waiting_tokens == 0

        rig.run(check())

    # -- bad requests -------------------------------------------------------------------------------

    def test_ids_in_use(self, rig: Rig) -> None:
        engine = rig.engine

        async def check() -> None:
            request = request_of(engine, max_tokens=64)
            stream = engine.generate(request)
            parts = [await anext(stream)]
            with pytest.raises(ValueError, match=request.id):
                await anext(engine.generate(request))
            parts += [part async for part in stream]
            assert len(Whole.of(parts).token_ids) == 64
            assert (await answer(engine, request)).token_ids == Whole.of(parts).token_ids

        rig.run(check())

    @pytest.mark.parametrize(
        "wrong", ["too long", "out of vocabulary", "negative", "empty", "adapter", "max_tokens"]
    )
    def test_what_can_never_be_served_is_refused(self, rig: Rig, wrong: str) -> None:
        engine = rig.engine
        good = request_of(engine)
        token = good.prompt_token_ids[-1]
        bad = {
            "too long": replace(good, prompt_token_ids=(token,) * engine.info.max_model_len),
            "out of vocabulary": replace(good, prompt_token_ids=(token, engine.info.vocab_size)),
            "negative": replace(good, prompt_token_ids=(token, -1)),
            "empty": replace(good, prompt_token_ids=()),
            "adapter": replace(good, adapter="no such adapter"),
            "max_tokens": replace(good, sampling=replace(good.sampling, max_tokens=0)),
        }[wrong]
        with pytest.raises(EngineRequestError):
            rig.run(answer(engine, bad))
        assert len(rig.run(answer(engine, good)).token_ids) == 16
