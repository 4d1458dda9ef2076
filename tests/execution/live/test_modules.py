"""Single modules on a live engine: without a back end they are refused by name, and it serves on."""

from dataclasses import replace
from pathlib import Path

import pytest

from execution.compiler.backends.tvm.backend import missing
from execution.live.modules import ModuleUnit
from execution.live.service import EvolutionSettings
from tests.execution.live.test_service import Run, evolved, live, unchanged

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]
SETTINGS = EvolutionSettings(
    observe_steps=60, place_pairs=4, place_limit_s=20.0, watch_every_s=0.02, decode=False, modules=3,
    module_backends=("tvm",), module_share=0.0, module_min_gain=0.01, module_min_gain_in_place=0.01,
    module_check_every=20, cpu_s_per_minute=6000,
    module_priority="normal",
)  # fmt: skip
"""Every kernel that is right is fast enough: what is asked here does not depend on this machine's speed."""


def modules_of(run: Run) -> ModuleUnit:
    unit = run.evolution._modules
    assert unit is not None
    return unit


def test_without_a_compiler_it_says_so_and_serves_on(tmp_path: Path) -> None:
    async def story(run: Run) -> None:
        await evolved(run)
        assert not modules_of(run).guards

    run = live(tmp_path, story, settings=replace(SETTINGS, module_backends=("nosuch",), modules=1))
    assert unchanged(run)
    assert "nosuch" in run.of("refused")[0]["reason"]
