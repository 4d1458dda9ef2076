"""Going live for real: the twin, sandboxed policies, shadow, canary, rollback, and operators elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from loop.contracts import Policy, PolicyCrashed, PolicySource, ReplayMode, Window, WindowResult
from loop.contracts.live import CommandKind, CommandStatus, Stage
from loop.journal import Journal, replay_decision
from loop.runner.evolution import EvolutionStep, PastWindow
from strategy.live import LiveConfig, LiveStore
from tests.loop.live_world import BASELINE, FIRST, World, edited, evolved
from tests.loop.test_controller import windows

ROOT = Path(__file__).parents[2]


class Offer:
    """A step runner that proves one policy, once."""

    def __init__(self, policy: PolicySource | None) -> None:
        self.policy = policy

    def __call__(
        self, incumbent: PolicySource, past: tuple[PastWindow, ...], stop: threading.Event
    ) -> EvolutionStep:
        policy, self.policy = self.policy, None
        return EvolutionStep(policy, "proven in the twin" if policy else "nothing new", gain=0.1)


def busy(count: int) -> list[Window]:
    """Windows of 60 s with two requests a second."""
    return [
        replace(w, requests=[r._replace(arrival_s=w.start_s + 0.5 * i) for i, r in enumerate(w.requests)])
        for w in windows(count, 120)
    ]


def stages(journal: Journal) -> list[tuple[str, Stage | None]]:
    return [(r.policy, r.after) for r in journal.live() if r.kind == "stage"]


@pytest.mark.slow
def test_an_evolved_policy_goes_through_shadow_and_whole_windows_on_the_twin(tmp_path: Path) -> None:
    new = evolved()
    how = replace(LiveConfig.batch(), shadow_share=1.0, hard_regret=1e9, canary_max_windows=2)
    with World() as there, Journal(tmp_path / "j.sqlite", run="test") as journal:
        evolution = there.evolution(Offer(new), there.live(how), judge=True, journal=journal)
        run = there.serve(evolution, windows(9), journal=journal)
        told = journal.live()
        decisions = list(journal.decisions())
        sources = {d.policy: journal.source(d.policy) for d in decisions if d.policy != FIRST.digest}
    after = [r.after for r in told if r.policy == new.digest]
    assert after[:2] == [Stage.SHADOW, Stage.CANARY]
    assert after[2] in {Stage.PROMOTED, Stage.REFUSED}
    canary = next(r for r in told if r.after is Stage.CANARY)
    assert canary.evidence["asked"] >= 41  # 40 requests and the monitoring point
    assert told[2].evidence["pairs"] >= 2
    assert [w.policy for w in run.windows[:5]] == [FIRST.digest] * 3 + [new.digest] * 2
    assert run.stats.finished == 9 * 40
    assert run.faults.total == 0
    assert sources[new.digest].source == new.source


@pytest.mark.slow
def test_a_canary_by_traffic_serves_its_share_online_and_serving_goes_on(tmp_path: Path) -> None:
    new = edited("reverse", "priority", "return -request.arrival_s")
    how = LiveConfig(shadow_windows=1, canary_share=0.4, shadow_late_s=None, canary_max_windows=3)
    with World() as there, Journal(tmp_path / "j.sqlite", run="test") as journal:
        evolution = there.evolution(Offer(new), there.live(how), journal=journal)
        run = there.serve(evolution, busy(8), ReplayMode.ONLINE, journal=journal)
        told = [r for r in journal.live() if r.policy == new.digest]
        for decision in journal.decisions():
            if decision.policy == FIRST.digest:  # the champion planned all the while: bit for bit the same
                assert replay_decision(decision, BASELINE, budget_s=2.0) == []
    assert run.stats.finished == 8 * 120
    assert run.faults.total == 0
    over = next(r for r in told if r.before is Stage.CANARY)
    assert over.evidence["pairs"] > 40
    assert 0.9 < over.evidence["ratio"] < 1.1  # an idle cluster: order in a queue changes little
    assert [r.after for r in told][:2] == [Stage.SHADOW, Stage.CANARY]


def test_a_policy_that_works_in_scoring_and_fails_live_goes_back_and_no_request_is_lost(
    tmp_path: Path,
) -> None:
    trap = edited(
        "trap", "route", 'memo["n"] = memo.get("n", 0.0) + 1.0\n    if memo["n"] > 60:\n        return 99'
    )
    with World() as there, Journal(tmp_path / "j.sqlite", run="test") as journal:
        evolution = there.evolution(Offer(trap), there.live(LiveConfig.immediate()), journal=journal)
        run = there.serve(evolution, windows(6), journal=journal)
        assert stages(journal) == [(trap.digest, Stage.PROMOTED), (trap.digest, Stage.ROLLED_BACK)]
    served = [w.policy == trap.digest for w in run.windows]
    assert served == [False, False, True, True, False, False]
    assert run.stats.finished == 6 * 40
    assert run.faults.total == 20
    assert any("made faults while it served" in r.reason for r in evolution.records)


@pytest.mark.slow
def test_a_policy_that_disappoints_is_taken_back_by_what_its_predecessor_would_have_done(
    tmp_path: Path,
) -> None:
    slow = edited("one-for-all", "route", "return 0")
    with World() as there, Journal(tmp_path / "j.sqlite", run="test") as journal:
        live = there.live(LiveConfig.immediate())
        evolution = there.evolution(Offer(slow), live, judge=True, journal=journal)
        run = there.serve(evolution, windows(7, 200), journal=journal)
        back = next(r for r in journal.live() if r.after is Stage.ROLLED_BACK)
    assert "disappoints" in back.reason
    assert back.evidence["predecessor_would_save"] > 0.02
    assert run.windows[-1].policy == FIRST.digest


class Dying(Offer):
    """Never offers anything, so that the run depends on its operators alone."""

    def __init__(self) -> None:
        super().__init__(None)


def order_elsewhere(path: Path, *words: str) -> None:
    """An operator in another process."""
    code = "import sys; from loop.commands.live import app; app(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--run", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_kill_switch_pulled_in_another_process_reaches_a_replay_that_runs(tmp_path: Path) -> None:
    new = edited("new", "priority", "pass")
    store = LiveStore.begin(tmp_path / "live.sqlite")
    with World() as there:
        live = there.live(LiveConfig.immediate(), store)
        evolution = there.evolution(Offer(new), live)
        ended: list[WindowResult] = []
        original = evolution.window_ended

        def window_ended(window: object, result: WindowResult, obs: object) -> None:
            original(window, result, obs)  # type: ignore[arg-type]
            ended.append(result)
            if len(ended) == 4:
                order_elsewhere(tmp_path, "kill")

        evolution.window_ended = window_ended  # type: ignore[method-assign]
        run = there.serve(evolution, windows(7))
    assert [w.policy == new.digest for w in run.windows] == [False, False, True, True, False, False, False]
    (command,) = store.commands()
    assert (command.kind, command.status, command.tick) == (CommandKind.KILL, CommandStatus.DONE, 4)
    assert run.stats.finished == 7 * 40
    assert not evolution.live.evolving


_VICTIM = """
import sys
from pathlib import Path
from strategy.live import LiveConfig, LiveStore
from tests.loop.live_world import World, edited
from tests.loop.test_controller import windows
from tests.loop.test_live import Offer
with World() as there:
    live = there.live(LiveConfig.immediate(), LiveStore(Path(sys.argv[1])))
    evolution = there.evolution(Offer(edited("new", "priority", "pass")), live)
    original = evolution.window_ended
    def window_ended(window, result, obs):
        original(window, result, obs)
        print(result.policy, flush=True)
    evolution.window_ended = window_ended
    there.serve(evolution, windows(10_000))
"""


@pytest.mark.slow
def test_a_loop_that_was_killed_goes_on_with_the_champion_of_its_store(tmp_path: Path) -> None:
    new = edited("new", "priority", "pass")
    path = tmp_path / "live.sqlite"
    LiveStore.begin(path).close()
    victim = subprocess.Popen(
        [sys.executable, "-c", _VICTIM, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert victim.stdout is not None
    for line in victim.stdout:
        if line.strip() == new.digest:
            break
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    with World() as there:
        live = there.live(LiveConfig.immediate(), LiveStore(path))
        evolution = there.evolution(Dying(), live)
        assert evolution.incumbent == new
        run = there.serve(evolution, windows(2))
    assert [w.policy for w in run.windows] == [new.digest, new.digest]


@pytest.mark.slow
def test_a_champion_whose_sandbox_dies_in_service_is_answered_for_and_taken_back() -> None:
    new = edited("mortal", "priority", "pass")
    with World() as there:
        evolution = there.evolution(Offer(new), there.live(LiveConfig.immediate()))
        original = evolution.next_policy

        def next_policy(obs: object) -> Policy | None:
            policy = original(obs)  # type: ignore[arg-type]
            if obs.tick == 3:  # type: ignore[attr-defined]
                os.kill(there.loaded[-1].pid, signal.SIGKILL)
            return policy

        evolution.next_policy = next_policy  # type: ignore[method-assign]
        run = there.serve(evolution, windows(6))
    assert run.stats.finished == 6 * 40
    assert run.faults.total >= 1
    assert PolicyCrashed.__name__ in run.faults.examples[0]
    assert [w.policy == new.digest for w in run.windows] == [False, False, True, True, False, False]
