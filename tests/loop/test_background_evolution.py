from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loop.contracts import PolicyFaults, PolicySource, Window
from loop.contracts.live import CommandKind
from loop.guard import GuardedPolicy, plan_problems
from loop.journal import Journal
from loop.runner.evolution import BackgroundEvolution, EvolutionStep, PastWindow
from strategy.live import Live, LiveConfig, LiveStore
from tests.loop.builders import ScriptedPolicy, observation
from tests.loop.test_journal import result

FIRST = PolicySource("first", "1", "first")
BETTER = PolicySource("better", "2", "better")


class Steps:
    """A step runner that offers what it is given, and remembers what it was shown."""

    def __init__(self, *champions: PolicySource | None) -> None:
        self.champions = list(champions)
        self.seen: list[tuple[str, list[int]]] = []

    def __call__(
        self, incumbent: PolicySource, past: tuple[PastWindow, ...], stop: threading.Event
    ) -> EvolutionStep:
        self.seen.append((incumbent.digest, [p.window.index for p in past]))
        champion = self.champions.pop(0) if self.champions else None
        return EvolutionStep(champion, "because", evaluations=5, candidates=2)


class Ticks:
    """A clock that moves one step at each look."""

    def __init__(self, step_s: float) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def drive(evolution: BackgroundEvolution, windows: int, *, faulty: int = -1) -> list[str]:
    """Digest of the policy that serves each window of 10 s."""
    served = []
    for i in range(windows):
        obs = observation(tick=i, now_s=10.0 * i)
        evolution.next_policy(obs)
        served.append(evolution.incumbent.digest)
        faults = PolicyFaults(errors=1) if i == faulty else PolicyFaults()
        ended = replace(result(i), policy=served[-1], faults=faults)
        evolution.window_ended(Window(i, 0.0, 1.0, ()), ended, obs)
    evolution.close()
    return served


def test_a_step_sees_the_past_only_and_hands_over_at_the_next_monitoring_point() -> None:
    steps = Steps(BETTER)
    evolution = BackgroundEvolution(FIRST, steps, lambda p: ScriptedPolicy(p.digest), clock=Ticks(1.0))
    assert drive(evolution, 4) == ["first", "first", "better", "better"]
    assert steps.seen[0] == ("first", [0])
    assert steps.seen[1] == ("better", [0, 1])
    assert evolution.cost.evaluations == 5 * len(steps.seen)
    assert [r.champion for r in evolution.records] == ["better", None, None]


def test_a_slow_step_hands_over_later() -> None:
    evolution = BackgroundEvolution(
        FIRST, Steps(BETTER), lambda p: ScriptedPolicy(p.digest), clock=Ticks(25.0)
    )
    assert drive(evolution, 5) == ["first", "first", "first", "first", "better"]


def test_a_policy_that_makes_faults_is_taken_back_for_good() -> None:
    evolution = BackgroundEvolution(
        FIRST, Steps(BETTER, None, BETTER), lambda p: ScriptedPolicy(p.digest), clock=Ticks(0.1)
    )
    assert drive(evolution, 6, faulty=2) == ["first", "first", "better", "first", "first", "first"]
    assert any("made faults" in r.reason for r in evolution.records)


class Judged(Steps):
    """Steps, and simulated worlds that say what each policy would have taken; each look takes its time."""

    def __init__(self, clock: Ticks, values: dict[str, float], *champions: PolicySource | None) -> None:
        super().__init__(*champions)
        self.clock, self.values = clock, values
        self.asked: list[tuple[list[str], list[int]]] = []

    def simulated(self, policies: Sequence[PolicySource], windows: Sequence[int]) -> dict[str, list[float]]:
        self.asked.append(([p.digest for p in policies], list(windows)))
        return {p.digest: [self.values[p.digest]] * len(windows) for p in policies}


def watched(values: dict[str, float], step_s: float, **options: Any) -> tuple[BackgroundEvolution, Judged]:
    clock = Ticks(step_s)
    steps = Judged(clock, values, BETTER)
    evolution = BackgroundEvolution(
        FIRST,
        steps,
        lambda p: ScriptedPolicy(p.digest),
        clock=clock,
        counterfactual=steps.simulated,
        **options,
    )
    return evolution, steps


def test_a_champion_that_disappoints_in_simulated_worlds_is_taken_back() -> None:
    evolution, steps = watched({"first": 9.0, "better": 10.0}, 0.1)
    served = drive(evolution, 7)
    assert served == ["first", "first", "better", "better", "better", "first", "first"]
    assert steps.asked[0] == (["better", "first"], [2, 3])
    assert any(
        "better disappoints: first would have saved 10.0% since" in r.reason for r in evolution.records
    )
    # no step began from a champion that was about to go
    assert ("better", [0, 1, 2, 3]) not in steps.seen


def test_a_verdict_counts_only_when_serving_has_gone_on_for_as_long_as_it_took() -> None:
    evolution, steps = watched({"first": 9.0, "better": 10.0}, 15.0)
    # proven from 10 to 25 s: serves from 30 s; asked at 50 s, judged at 65 s: goes at 70 s
    assert drive(evolution, 9) == ["first"] * 3 + ["better"] * 4 + ["first"] * 2
    assert steps.asked[0] == (["better", "first"], [3, 4])


def test_a_champion_that_keeps_its_promise_stays_and_evolution_goes_on() -> None:
    evolution, steps = watched({"first": 10.0, "better": 9.9}, 0.1)
    assert drive(evolution, 7)[-1] == "better"
    assert ("better", [0, 1, 2, 3, 4]) in steps.seen


def test_a_question_that_fails_does_not_stop_evolution() -> None:
    evolution, steps = watched({}, 0.1)
    assert drive(evolution, 6)[-1] == "better"
    assert ("better", [0, 1, 2, 3, 4]) in steps.seen


def test_a_champion_proven_early_takes_over_before_its_step_is_over() -> None:
    def early(incumbent: PolicySource, past: tuple[PastWindow, ...], stop: threading.Event) -> EvolutionStep:
        return EvolutionStep(BETTER if incumbent is FIRST else None, "early", proven_after_s=4.0)

    evolution = BackgroundEvolution(FIRST, early, lambda p: ScriptedPolicy(p.digest), clock=Ticks(25.0))
    assert drive(evolution, 4) == ["first", "first", "better", "better"]


def test_a_real_system_does_not_wait_for_a_step() -> None:
    go_on = threading.Event()

    def slow(incumbent: PolicySource, past: tuple[PastWindow, ...], stop: threading.Event) -> EvolutionStep:
        go_on.wait(600.0)
        return EvolutionStep(BETTER, "late")

    evolution = BackgroundEvolution(FIRST, slow, lambda p: ScriptedPolicy(p.digest), waits=False)
    for tick in range(4):  # would never end if it waited
        obs = observation(tick=tick, now_s=10.0 * tick)
        assert evolution.next_policy(obs) is None
        evolution.window_ended(Window(tick, 0.0, 1.0, ()), result(tick), obs)
    go_on.set()
    evolution.close()


def test_while_killed_evolution_rests_and_its_step_is_asked_to_stop(tmp_path: Path) -> None:
    store = LiveStore.begin(tmp_path / "live.sqlite")
    stops: list[threading.Event] = []

    def step(incumbent: PolicySource, past: tuple[PastWindow, ...], stop: threading.Event) -> EvolutionStep:
        stops.append(stop)
        return EvolutionStep(None, "nothing")

    live = Live(
        FIRST,
        lambda p: ScriptedPolicy(p.digest),
        LiveConfig(),
        guard=GuardedPolicy,
        check=plan_problems,
        store=store,
    )
    with Journal(tmp_path / "journal.sqlite", run="test") as journal:
        evolution = BackgroundEvolution(
            FIRST,
            step,
            lambda p: ScriptedPolicy(p.digest),
            clock=Ticks(0.1),
            live=live,
            journal=journal,
        )
        begun = []
        for tick in range(8):
            if tick == 3:
                store.order(CommandKind.KILL)
            if tick == 6:
                store.order(CommandKind.REVIVE)
            obs = observation(tick=tick, now_s=10.0 * tick)
            evolution.next_policy(obs)
            evolution.window_ended(Window(tick, 0.0, 1.0, ()), result(tick), obs)
            begun.append(len(stops))
        evolution.close()
        assert [r.tick for r in journal.live() if r.kind == "command"] == [3, 6]
        assert journal.live(tick=3)[-1].reason.startswith("the operator: kill")
    assert begun[5] == begun[3]
    assert len(stops) > begun[5]
    assert stops[begun[5] - 1].is_set()
