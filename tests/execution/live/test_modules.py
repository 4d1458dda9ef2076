"""Single modules on a live engine: compiled through the service, proven, swapped in, watched, taken back."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from execution.compiler.backends.tvm.backend import missing
from execution.live.module_rounds import ModuleSettings
from execution.live.modules import ModuleUnit
from execution.live.service import EvolutionSettings
from execution.live.variants import Table
from tests.execution.live.test_service import Run, evolved, live, unchanged

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]
SETTINGS = EvolutionSettings(
    observe_steps=60, place_pairs=4, place_limit_s=20.0, watch_every_s=0.02, decode=False, cpu_s_per_minute=6000,
    modules=ModuleSettings(
        most=3, later=0, backends=("tvm",), least_share=0.0, min_gain=0.01, min_gain_in_place=0.01, check_every=20,
        priority="normal", compile_s=45.0,
    ),
)  # fmt: skip
"""Every kernel that is right is fast enough: what is asked here does not depend on this machine's speed."""


def asking(**changes: Any) -> EvolutionSettings:
    return replace(SETTINGS, modules=replace(SETTINGS.modules, **changes))


def modules_of(run: Run) -> ModuleUnit:
    rounds = run.evolution._modules
    assert rounds is not None
    return rounds.unit


def test_kernels_of_modules_are_proven_swapped_in_checked_and_given_up_when_wrong(tmp_path: Path) -> None:
    async def story(run: Run) -> None:
        await evolved(run)
        assert run.evolution.report()["in_force"], list(run.journal.entries)
        unit = modules_of(run)
        name, guard = next(iter(unit.guards.items()))
        serving = guard.table.variants()[0]
        before = guard.calls
        await run.until(lambda: guard.calls > before + 40 and len(guard.checks) > 0)
        assert all(check.ok for check in guard.checks)
        assert unchanged_so_far(run)

        await asyncio.to_thread(run.evolution.swap_back)
        assert modules_of(run) is unit
        assert all(guard.table.pick(rows) is None for rows in range(1, 17))
        await asyncio.to_thread(run.evolution.swap_in)
        assert guard.table.pick(serving.bucket.most) is not None

        def slightly_off(x: torch.Tensor) -> torch.Tensor:
            return serving.call(x) * 1.01  # type: ignore[no-any-return]

        bad = replace(serving, name="worn", call=slightly_off, instead=serving)
        table = Table.of(dict.fromkeys(range(serving.bucket.least, serving.bucket.most + 1), bad))
        await asyncio.wrap_future(run.engine.between_steps(lambda _: guard.exchange(table)))
        await run.until(lambda: any(e.get("variant") == "worn" for e in run.of("swapped-back")))
        assert "mismatch" in run.of("swapped-back")[-1]["reason"]
        assert run.of("swapped-back")[-1]["unit"] == name
        await run.until(lambda: guard.table.pick(serving.bucket.most) is serving)

    def unchanged_so_far(run: Run) -> bool:
        return all(len(found) == 1 for found in run.answers.values())

    run = live(tmp_path, story, settings=SETTINGS)
    assert {e["event"] for e in run.journal.entries} >= {"searching", "accepted", "swapped", "searched"}
    for entry in run.of("accepted"):
        assert entry["variant"].startswith("tvm ")
        assert entry["ratio"] > 0
    for entry in run.of("refused"):
        assert entry["stage"]
        assert entry["reason"]


def test_what_is_no_faster_in_place_is_taken_back_and_the_module_is_itself_again(tmp_path: Path) -> None:
    async def story(run: Run) -> None:
        originals = await run.engine.modules()
        await evolved(run)
        assert run.evolution.report()["in_force"] == {}, list(run.journal.entries)
        assert not modules_of(run).guards
        now = await run.engine.modules()
        assert all(now[name] is module for name, module in originals.items() if name != "decode")

    patient = replace(
        asking(most=1, min_gain_in_place=1000.0), place_limit_s=300.0
    )  # it is judged, however slow
    run = live(tmp_path, story, settings=patient)
    assert unchanged(run)
    assert run.of("swapped")
    assert run.of("taken-back")[0]["reason"] == "no faster in place"


def test_without_a_compiler_it_says_so_and_serves_on(tmp_path: Path) -> None:
    async def story(run: Run) -> None:
        await evolved(run)
        assert not modules_of(run).guards

    run = live(tmp_path, story, settings=asking(backends=("nosuch",), most=1))
    assert unchanged(run)
    assert "nosuch" in run.of("refused")[0]["reason"]
