"""Evolution in a process of its own: real steps, real deaths, the lowest priority, and nobody left behind."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest

from loop.compose.evolving import EvolutionConfig
from loop.compose.experiment import baseline_source
from loop.compose.objective import Objective
from loop.compose.replay import ReplayConfig, replay
from loop.compose.scoring import ScoringSetup
from loop.compose.serving_evolution import NICE, EvolutionProcess, EvolutionProcessError, EvolverSpec
from loop.compose.world import WorldSpec, build_world
from loop.contracts import Observation, Policy, ReplayMode, Request, Slo, Window, WindowResult
from loop.controller import ControllerConfig
from loop.runner.evolution import EvolutionStep, PastWindow
from strategy.baselines import load_baseline

pytestmark = pytest.mark.slow

WORLD = WorldSpec("local-2", ("tiny-llama",))
CONFIG = ReplayConfig(ControllerConfig(mode=ReplayMode.ONLINE), Slo(0.5, 0.05), 10.0, 16)
FIRST = baseline_source("round_robin")
DEADLINE_S = 600.0


class Collector:
    """A source of policies that has none, and keeps the past."""

    def __init__(self) -> None:
        self.past: list[PastWindow] = []

    def next_policy(self, obs: Observation) -> Policy | None:
        return None

    def window_ended(self, window: Window, result: WindowResult, obs: Observation) -> None:
        self.past.append(PastWindow(window, obs, result, self.past[-1].obs if self.past else None))


@cache
def past() -> tuple[PastWindow, ...]:
    """Three windows, served in the twin of this machine."""
    windows = [
        Window(
            k,
            10.0 * k,
            10.0 * k + 10.0,
            [
                Request(100 * k + i, 10.0 * k + 0.4 * i, "tiny-llama", 200 + 40 * (i % 5), 60)
                for i in range(25)
            ],
        )
        for k in range(3)
    ]
    found = Collector()
    replay(
        build_world(WORLD),
        load_baseline("round_robin"),
        load_baseline("least_loaded"),
        windows,
        CONFIG,
        source=found,
    )
    return tuple(found.past)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[EvolutionProcess]:
    made = process_in(WORLD, tmp_path)
    yield made
    made.close()


def process_in(world: WorldSpec, tmp_path: Path) -> EvolutionProcess:
    options = build_world(world).options
    setup = ScoringSetup((world, replace(world, seed=1)), options, CONFIG, Objective.GOODPUT)
    spec = EvolverSpec(
        setup,
        FIRST,
        EvolutionConfig(evaluations=4, step_deadline_s=600.0, rehearse=False),
        (baseline_source("least_loaded"),),
        tmp_path / "archive.sqlite",
    )
    made = EvolutionProcess(spec)
    made.past = past
    made.now = lambda: past()[-1].obs
    return made


def step(process: EvolutionProcess) -> EvolutionStep:
    return process.step(FIRST, past(), threading.Event())


def stopped_step(process: EvolutionProcess) -> EvolutionStep:
    """One that is told to end before it has begun."""
    stop = threading.Event()
    stop.set()
    return process.step(FIRST, past(), stop)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:  # noqa: PTH123
        return stat.read().rpartition(")")[2].split()[0] == "Z"


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as found:  # noqa: PTH123
        return [int(word) for word in found.read().split()]


def wait_gone(pids: list[int]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < until, pids
        time.sleep(0.02)


def test_a_step_and_a_question_are_answered_at_the_lowest_priority(process: EvolutionProcess, tmp_path: Path):
    found = step(process)
    assert found.evaluations >= 1
    assert found.reason
    assert process.pid is not None
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == NICE
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in children(process.pid)} == {NICE}
    values = process.counterfactual([FIRST, baseline_source("least_loaded")], [1, 2])
    assert set(values) == {FIRST.digest, baseline_source("least_loaded").digest}
    assert all(len(v) == 2 and all(x >= 0.0 for x in v) for v in values.values())
    assert (tmp_path / "archive.sqlite").is_file()


def test_profiles_of_the_users_may_be_named_from_where_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = Path(str(files("hw_profiles") / "data"))
    (tmp_path / "clusters").mkdir()
    for name in ("clusters/local-2.yaml", "models/tiny-llama.yaml"):
        shutil.copy(data / name, tmp_path / name.replace("models/", ""))
    monkeypatch.chdir(tmp_path)
    process = process_in(WorldSpec("clusters/local-2.yaml", ("tiny-llama.yaml",)), tmp_path)
    try:
        assert step(process).evaluations >= 1
    finally:
        process.close()


def test_a_process_that_was_killed_is_told_of_and_the_next_question_starts_another(process: EvolutionProcess):
    process.counterfactual([FIRST], [1])  # brings it up
    first = process.pid
    assert first is not None
    family = [first, *children(first)]
    faults: list[Exception] = []

    def interrupted() -> None:
        try:
            step(process)
        except EvolutionProcessError as fault:
            faults.append(fault)

    asked = threading.Event()

    def known() -> tuple[PastWindow, ...]:
        asked.set()
        return past()

    process.past = known  # looked at once the process is known to be there, before it is told the question
    os.kill(first, signal.SIGSTOP)  # so that it has no time to answer
    stepping = threading.Thread(target=interrupted)
    stepping.start()
    assert asked.wait(DEADLINE_S)
    os.kill(first, signal.SIGKILL)
    stepping.join(DEADLINE_S)
    assert ["ended" in str(fault) for fault in faults] == [True]
    wait_gone(family)
    assert step(process).evaluations >= 1
    assert process.starts == 2
    assert process.pid != first


def test_a_step_ends_soon_when_it_is_told_to_stop(process: EvolutionProcess):
    found = stopped_step(process)
    assert found.champion is None
    assert found.evaluations < 4


def test_closed_it_leaves_nobody_behind_and_answers_no_more(process: EvolutionProcess):
    process.counterfactual([FIRST], [1])  # brings it up
    assert process.pid is not None
    family = [process.pid, *children(process.pid)]
    process.close()
    process.close()
    wait_gone(family)
    with pytest.raises(EvolutionProcessError, match="closed"):
        step(process)
