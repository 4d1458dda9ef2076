"""What only the simulated engine promises: its pace, its counters, and how it fails."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from execution.engines.simulated import SimulatedEngine
from execution.engines.simulated.hardware import hardware_of
from execution.engines.simulated.options import SimulatedOptions
from execution.twin.batch import Batch
from loop.contracts.engine import (
    EngineCrashedError,
    EngineError,
    EngineFinish,
    EngineLimits,
    EngineOutput,
    EngineRequest,
    EngineSpec,
    SamplingParams,
)

MODEL = "llama-3.1-70b"
OPTIONS: dict[str, str | int | float | bool] = {"tp": 4, "time_scale": 0.0}


def request_of(name: str, prompt_tokens: int = 40, **sampling: Any) -> EngineRequest:
    params = SamplingParams(**{"max_tokens": 8, "ignore_eos": True, "seed": 1, **sampling})
    return EngineRequest(name, tuple(b"abcdefgh"[i % 8] + len(name) for i in range(prompt_tokens)), params)


async def started(limits: EngineLimits | None = None, **options: str | float | bool) -> SimulatedEngine:
    spec = EngineSpec("simulated", MODEL, limits=limits or EngineLimits(), options={**OPTIONS, **options})
    engine = SimulatedEngine(spec)
    await engine.start()
    return engine


async def read(engine: SimulatedEngine, request: EngineRequest) -> list[EngineOutput]:
    return [output async for output in engine.generate(request)]


def test_steps_take_what_the_performance_model_says() -> None:
    async def check() -> None:
        engine = await started(time_scale=0.01)
        await read(engine, request_of("a", 40, max_tokens=20))
        costs = hardware_of(MODEL, SimulatedOptions(tp=4)).costs
        expected_s = costs.iteration_s(0, 0, ((40, 0),)) + sum(
            costs.iteration_s(1, 40 + i) for i in range(19)
        )
        stats = await engine.stats()
        assert stats.steps == 20
        assert stats.step_s == pytest.approx(0.01 * expected_s)

    asyncio.run(check())


def test_real_time_is_not_ahead_of_the_model() -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        engine = await started(time_scale=0.02)
        began_s = loop.time()
        outputs = await read(engine, request_of("a", max_tokens=30))
        assert loop.time() - began_s >= (await engine.stats()).step_s * 0.999
        assert began_s <= outputs[0].scheduled_s <= loop.time()

    asyncio.run(check())


def test_answers_do_not_depend_on_where_and_when() -> None:
    async def check() -> None:
        one, other = await started(), await started(EngineLimits(max_num_seqs=2), tp=8)
        requests = [request_of(f"r{n}", 20 + n) for n in range(6)]
        first = [await read(one, request) for request in requests]
        second = await asyncio.gather(*(read(other, request) for request in requests))
        assert [_tokens(outputs) for outputs in first] == [_tokens(outputs) for outputs in second]
        weights = SimulatedEngine(EngineSpec("simulated", MODEL, seed=5, options=OPTIONS))
        await weights.start()
        assert _tokens(await read(weights, requests[0])) != _tokens(first[0])

    asyncio.run(check())


def test_answers_end_by_themselves() -> None:
    async def check() -> None:
        engine = await started(answer_tokens=5.0, answer_sigma=0.0)
        (*_, last) = outputs = await read(engine, request_of("a", max_tokens=1000, ignore_eos=False))
        tokens = _tokens(outputs)
        assert (len(tokens), last.finish, last.stop_reason) == (5, EngineFinish.STOP, None)
        assert tokens[-1] in engine.tokenizer.eos_token_ids
        assert "".join(output.text for output in outputs) == engine.tokenizer.decode(tokens)

    asyncio.run(check())


def test_a_continuation_of_what_was_whole_ends_at_once() -> None:
    async def check() -> None:
        engine = await started()
        request = request_of("a")
        tokens = _tokens(await read(engine, request))
        rest = replace(request, prompt_token_ids=request.prompt_token_ids + tokens, generated=len(tokens))
        (only,) = await read(engine, rest)
        assert (only.token_ids, only.text, only.finish) == ((), "", EngineFinish.LENGTH)
        await engine.drain()

    asyncio.run(check())


def test_requests_of_one_turn_share_the_first_step() -> None:
    async def check() -> None:
        engine = await started()
        await asyncio.gather(*(read(engine, request_of(f"r{n}", 10, max_tokens=1)) for n in range(20)))
        assert (await engine.stats()).steps == 1

    asyncio.run(check())


@pytest.mark.slow
def test_a_defect_ends_the_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        engine = await started()
        stream = engine.generate(request_of("a", max_tokens=100_000))
        await anext(stream)

        def broken(self: Batch) -> None:
            raise RuntimeError("out of tea")

        monkeypatch.setattr(Batch, "reconcile", broken)
        follower = asyncio.ensure_future(read(engine, request_of("b", 64)))
        with pytest.raises(EngineCrashedError, match="out of tea"):
            async for _ in stream:
                pass
        with pytest.raises(EngineCrashedError, match="out of tea"):
            await follower
        with pytest.raises(EngineCrashedError, match="out of tea"):
            await engine.stats()

    asyncio.run(check())


def test_it_starts_once_and_not_after_it_stopped() -> None:
    async def check() -> None:
        engine = await started()
        with pytest.raises(EngineError, match="started already"):
            await engine.start()
        await engine.stop()
        with pytest.raises(EngineError, match="stopped"):
            await engine.start()

    asyncio.run(check())


def test_stopped_while_it_loads() -> None:
    async def check() -> None:
        engine = SimulatedEngine(EngineSpec("simulated", MODEL, options={**OPTIONS, "start_s": 0.05}))
        starting = asyncio.ensure_future(engine.start())
        await asyncio.sleep(0)
        await engine.stop()
        with pytest.raises(EngineError, match="stopped while it started"):
            await starting

    asyncio.run(check())


@pytest.mark.slow
def test_thousands_of_streams() -> None:
    async def check() -> None:
        engine = await started(EngineLimits(max_num_seqs=4096, max_num_batched_tokens=8192))
        answers = await asyncio.gather(
            *(read(engine, request_of(f"r{n}", 20, max_tokens=4)) for n in range(2000))
        )
        assert [len(_tokens(outputs)) for outputs in answers] == [4] * 2000
        assert (await engine.stats()).finished == 2000

    asyncio.run(check())


def _tokens(outputs: list[EngineOutput]) -> tuple[int, ...]:
    return tuple(token for output in outputs for token in output.token_ids)
