from __future__ import annotations

import threading
from dataclasses import replace

from loop.contracts import PolicyFaults, PolicySource, Window
from loop.runner.evolution import BackgroundEvolution, EvolutionStep, PastWindow
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
        evolution.window_ended(Window(i, 0.0, 1.0, ()), replace(result(i), faults=faults), obs)
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
