"""The torch engine in this process and in one of its own."""

from collections.abc import Iterator

import pytest

pytest.importorskip("torch", reason="needs the extra torch: pip install 'autopoiesis[torch]'")

from execution.engines.registry import build_engine
from execution.replicas.remote import RemoteEngine
from loop.contracts.engine import Engine, EngineSpec
from tests.execution.engines.conformance import LIMITS, EngineConformance, Rig


def spec(**options: str | float | bool) -> EngineSpec:
    return EngineSpec("torch", "tiny-llama", limits=LIMITS, options={"threads": 1, **options})


@pytest.fixture(scope="module", params=["in process", "remote"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    def build(**options: str | float | bool) -> Engine:
        return RemoteEngine(spec(**options)) if request.param == "remote" else build_engine(spec(**options))

    with Rig(build, kv_options={"kv_capacity_tokens": 512}) as rig:
        yield rig


@pytest.mark.slow
class TestTorch(EngineConformance):
    pass
