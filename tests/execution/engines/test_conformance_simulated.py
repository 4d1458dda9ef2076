"""The simulated engine in this process and in one of its own."""

from collections.abc import Iterator

import pytest

from execution.engines.registry import build_engine
from execution.replicas.remote import RemoteEngine
from loop.contracts.engine import Engine, EngineSpec
from tests.execution.engines.conformance import LIMITS, EngineConformance, Rig


def spec(**options: str | float | bool) -> EngineSpec:
    """Steps take about a millisecond, and the longest answer ten seconds: long enough to be seen under way."""
    common = {"time_scale": 0.15, "max_model_len": 8192}
    return EngineSpec("simulated", "llama-3.1-8b", limits=LIMITS, options={**common, **options})


@pytest.fixture(scope="module", params=["in process", pytest.param("remote", marks=pytest.mark.slow)])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    def build(**options: str | float | bool) -> Engine:
        return RemoteEngine(spec(**options)) if request.param == "remote" else build_engine(spec(**options))

    with Rig(build, kv_options={"kv_capacity_tokens": 512}) as rig:
        yield rig


class TestSimulated(EngineConformance):
    pass
