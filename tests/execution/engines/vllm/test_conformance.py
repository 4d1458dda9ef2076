"""The vLLM engine and the suite for all engines: in a worker of the interpreter that has vLLM, and over HTTP.

In the worker a start takes long, so the engine with little memory is the one that is killed, and the shared one is
stopped last; draining is the same code in both modes, and shown over HTTP.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from execution.engines.vllm import VllmEngine
from loop.contracts.engine import Engine, EngineSpec
from tests.execution.engines.conformance import LIMITS, EngineConformance, Rig
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
        given = {"python": vllm_python, "mode": "in-process", **options}
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
