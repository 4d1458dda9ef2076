"""What every engine must do, whatever it is and wherever it runs: one suite for the Engine port.

A test file of an engine gives a module-scoped fixture `rig` and a subclass of `EngineConformance`:

    @pytest.fixture(scope="module", params=["in process", "remote"])
    def rig(request):
        with Rig(lambda **options: build_engine(EngineSpec(...))) as rig:
            yield rig

    class TestMyEngine(EngineConformance): ...

Starting an engine may be slow, so most tests share one; those that end it build their own.
"""

from __future__ import annotations

from tests.execution.engines.conformance_answers import AnswerConformance
from tests.execution.engines.conformance_life import LifeConformance
from tests.execution.engines.conformance_serving import ServingConformance
from tests.execution.engines.rig import LIMITS, Rig

__all__ = ["LIMITS", "EngineConformance", "Rig"]


class EngineConformance(AnswerConformance, ServingConformance, LifeConformance):
    """The suite; collected where a subclass is named Test..."""
