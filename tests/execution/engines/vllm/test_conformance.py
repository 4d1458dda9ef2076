"""The vLLM engine and the suite for all engines: in a worker of the interpreter that has vLLM, and over HTTP.

In the worker a start takes long, so the engine with little memory is the one that is killed, and the shared one is
stopped last; draining is the same code in both modes, and shown over HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from execution.engines.vllm import VllmEngine
from loop.contracts.engine import Engine, EngineBusyError, EngineFinish, EngineRequestError, EngineSpec
from tests.execution.engines.conformance import EngineConformance
from tests.execution.engines.rig import (
    LIMITS,
    Rig,
    answer,
    blocked,
    eventually,
    long_request,
    request_of,
    waits,
)
from tests.execution.engines.vllm import policies
from tests.execution.engines.vllm.adapters import write_adapter
from tests.execution.engines.vllm.conftest import Server

pytestmark = pytest.mark.slow


class ThriftyRig(Rig):
    """Hands the engine with little memory to the next test that wants one of its own, and then the shared one."""

    _little: Engine | None = None

    @contextlib.asynccontextmanager
    async def fresh(self, **options: str | float | bool) -> AsyncIterator[Engine]:
        if options:
            engine = self._little = self.build(**options)
            await engine.start()
            yield engine
            return
        engine = self._little or self._engine or self.build()
        if engine is self._little:
            self._little = None
        elif engine is self._engine:
            self._engine = None
        else:
            await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()

    def __exit__(self, *about: object) -> None:
        if self._little is not None:
            self.run(self._little.stop())
        super().__exit__(*about)


@pytest.fixture(scope="module")
def worker(vllm_python: str) -> Iterator[Rig]:
    def build(**options: str | float | bool) -> Engine:
        given = {
            "python": vllm_python, "mode": "in-process", "max_adapters": 1,
            "policy_ask_s": 5.0, "policy_step_budget_s": 10.0, **options,
        }  # fmt: skip
        return VllmEngine(EngineSpec("vllm", "tiny-llama", limits=LIMITS, options=given))

    with ThriftyRig(build, kv_options={"kv_cache_mib": 2, "max_model_len": 512}) as rig:
        yield rig


@pytest.fixture(scope="module")
def over_http(server: Server) -> Iterator[Rig]:
    def build(**options: str | float | bool) -> Engine:
        given = {"mode": "server", "url": server.address.url, "api_key": server.address.api_key, **options}
        return VllmEngine(EngineSpec("vllm", "tiny-llama", limits=LIMITS, options=given))

    with Rig(build) as rig:
        yield rig


class TestInAWorker(EngineConformance):
    """vLLM in a process of ours."""

    @pytest.fixture
    def rig(self, worker: Rig) -> Rig:
        return worker

    def test_drain_finishes_what_has_begun_and_takes_nothing_more(self, rig: Rig) -> None:
        pytest.skip("the same code as over HTTP: not worth another start of vLLM")

    def test_a_policy_orders_and_a_broken_one_changes_nothing(self, rig: Rig) -> None:
        engine = vllm(rig)

        async def check() -> list[int]:
            order: list[int] = []

            async def one(length: int) -> None:
                request = replace(request_of(engine, max_tokens=2), prompt_token_ids=(66,) * length)
                await answer(engine, request)
                order.append(length)

            async with blocked(engine) as let_go:
                tasks = []
                for queued, length in enumerate((20, 60, 40), 1):
                    tasks.append(asyncio.ensure_future(one(length)))
                    await eventually(lambda queued=queued: waits(engine, queued))
                report = await engine.set_policy(policies.LONGEST_FIRST, "longest")
                assert (report["policy"]["name"], report["waiting"]) == ("longest", 3)
                with pytest.raises(EngineRequestError, match="SyntaxError"):
                    await engine.set_policy(policies.NO_PYTHON, "broken")
                assert (await engine.report())["policy"]["name"] == "longest"
                await let_go()
                await asyncio.gather(*tasks)
            await engine.set_policy(policies.SHORT_ONES_ONLY, "short")
            with pytest.raises(EngineBusyError, match="rejected by policy short"):
                await answer(engine, replace(request_of(engine), prompt_token_ids=(66,) * 100))
            assert (await engine.set_policy(""))["policy"] is None
            return order

        assert rig.run(check()) == [60, 40, 20]

    def test_sleep_ends_what_runs_and_keeps_what_comes(self, rig: Rig) -> None:
        engine = vllm(rig)

        async def check() -> None:
            stream = engine.generate(long_request(engine))
            await anext(stream)
            await engine.sleep()
            rest = [output async for output in stream]
            assert rest[-1].finish is EngineFinish.CANCELLED
            later = asyncio.ensure_future(answer(engine, request_of(engine)))
            await eventually(lambda: waits(engine, 1))
            assert not later.done()
            await engine.wake()
            assert len((await later).token_ids) == 16

        rig.run(check())

    def test_adapters_come_and_go(self, rig: Rig, tmp_path: Path) -> None:
        engine = vllm(rig)
        write_adapter(tmp_path / "loud")

        async def check() -> None:
            request = request_of(engine)

            async def tokens(adapter: str | None) -> tuple[int, ...]:
                return (await answer(engine, replace(request, adapter=adapter))).token_ids

            plain = await tokens(None)
            await engine.load_adapter("loud", str(tmp_path / "loud"))
            assert await engine.adapters() == ("loud",)
            assert await tokens("loud") != plain
            assert await tokens(None) == plain
            for name, path in (("loud", "loud"), ("nowhere", "nowhere")):
                with pytest.raises(EngineRequestError, match=name):
                    await engine.load_adapter(name, str(tmp_path / path))
            await engine.unload_adapter("loud")
            for gone in (tokens("loud"), engine.unload_adapter("loud")):
                with pytest.raises(EngineRequestError, match="loud"):
                    await gone

        rig.run(check())


def vllm(rig: Rig) -> VllmEngine:
    """The shared engine, for what only vLLM can."""
    engine = rig.engine
    assert isinstance(engine, VllmEngine)
    return engine


class TestOverHttp(EngineConformance):
    """vLLM behind its own server. Stopping this engine leaves the server alone."""

    @pytest.fixture
    def rig(self, over_http: Rig) -> Rig:
        return over_http


class TestServerOfItsOwn:
    """A server that the engine starts and ends."""

    def test_killed(self, vllm_python: str) -> None:
        def build(**options: str | float | bool) -> Engine:
            given = {"python": vllm_python, "mode": "server", **options}
            return VllmEngine(EngineSpec("vllm", "micro-llama", limits=LIMITS, options=given))

        with Rig(build) as rig:
            EngineConformance().test_killed(rig)
