"""Evolution beside serving where it is easily wrong: slow steps, failing steps, policies that do not load."""

from __future__ import annotations

import pickle
import threading
from dataclasses import replace

import pytest

from loop.contracts import (
    EMPTY_PLAN,
    Memo,
    Policy,
    PolicyCrashed,
    PolicyFaults,
    PolicySource,
    PolicyTimeout,
    Quantiles,
    Resources,
    ServingStats,
    Window,
    WindowResult,
)
from loop.guard import GuardedPolicy
from loop.runner.evolution import BackgroundEvolution, EvolutionStep, PastWindow
from strategy.baselines import load_baseline
from strategy.evolve.sandbox import PolicyRaisedError, SandboxedPolicy, SandboxLimits
from strategy.policy import digest_of
from tests.loop.builders import ScriptedPolicy, observation, replica_view, request_view

NOTHING = Quantiles()
STATS = ServingStats(0, 0, 0, 0, 0, NOTHING, NOTHING, NOTHING, 0, 0, 0, 0)
RESULT = WindowResult(0, 1.0, 1.0, 0.0, 0.0, 0.0, False, "first", EMPTY_PLAN, STATS, Resources())


def source(name: str) -> PolicySource:
    return PolicySource(name, name, name)


def serve(evolution: BackgroundEvolution, ticks: int, every_s: float = 50.0) -> None:
    for tick in range(ticks):
        obs = observation(tick=tick, now_s=tick * every_s)
        evolution.next_policy(obs)
        window = Window(tick, tick * every_s, (tick + 1) * every_s, ())
        evolution.window_ended(window, replace(RESULT, index=tick), obs)


class Clock:
    """Time passes only where a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_champions_of_steps_that_take_longer_than_a_window_take_over_all_the_same() -> None:
    clock = Clock()
    made: list[str] = []

    def step(incumbent: PolicySource, past: tuple[PastWindow, ...], stop: threading.Event) -> EvolutionStep:
        clock.now_s += 60.0
        made.append(f"c{len(made)}")
        return EvolutionStep(source(made[-1]), "better")

    evolution = BackgroundEvolution(source("first"), step, lambda s: ScriptedPolicy(s.digest), clock=clock)
    serve(evolution, 12, every_s=50.0)
    evolution.close()
    assert len(evolution.served) > 1


def test_a_step_that_fails_does_not_stop_serving() -> None:
    def step(incumbent: PolicySource, past: tuple[PastWindow, ...], stop: threading.Event) -> EvolutionStep:
        raise PolicyCrashed("a scoring worker did not start")

    evolution = BackgroundEvolution(source("first"), step, lambda s: ScriptedPolicy(s.digest))
    serve(evolution, 3)
    evolution.close()
    assert [p.name for p in evolution.served] == ["first"]
    assert any("did not start" in record.reason for record in evolution.records)


def test_a_champion_that_cannot_be_loaded_does_not_stop_serving() -> None:
    def step(incumbent: PolicySource, past: tuple[PastWindow, ...], stop: threading.Event) -> EvolutionStep:
        return EvolutionStep(source("champion"), "better")

    def load(policy: PolicySource) -> Policy:
        raise PolicyTimeout("no answer within the deadline")

    evolution = BackgroundEvolution(source("first"), step, load, clock=lambda: 0.0)
    serve(evolution, 4)
    evolution.close()
    assert evolution.incumbent.name == "first"


def test_faults_of_the_first_policy_are_no_reason_to_take_it_back_for_itself() -> None:
    first = source("first")
    champion = source("champion")

    def step(incumbent: PolicySource, past: tuple[PastWindow, ...], stop: threading.Event) -> EvolutionStep:
        return EvolutionStep(champion if incumbent is first else None, "better")

    evolution = BackgroundEvolution(first, step, lambda s: ScriptedPolicy(s.digest), clock=lambda: 0.0)
    for tick in range(6):
        obs = observation(tick=tick, now_s=tick * 50.0)
        evolution.next_policy(obs)
        result = replace(RESULT, index=tick, faults=PolicyFaults(errors=1))
        evolution.window_ended(Window(tick, 0.0, 1.0, ()), result, obs)
    evolution.close()
    assert [p.name for p in evolution.served] == ["first", "champion", "first"]


def test_a_fault_of_a_policy_crosses_a_process_boundary() -> None:
    copy = pickle.loads(pickle.dumps(PolicyRaisedError("it broke", "ValueError", 7)))  # noqa: S301
    assert (str(copy), copy.kind, copy.line) == ("it broke", "ValueError", 7)


def edited(function: str, body: str) -> PolicySource:
    """least_loaded with `body` put at the beginning of one of its functions."""
    text = load_baseline("least_loaded").source
    start = text.index(f"def {function}(")
    end = text.index('"""', text.index('"""', start) + 3) + 3
    changed = f"{text[:end]}\n    {body}{text[end:]}"
    return PolicySource("edited", changed, digest_of(changed))


@pytest.mark.slow
def test_a_plan_that_never_comes_is_charged() -> None:
    limits = SandboxLimits(plan_grace_s=0.2)
    with SandboxedPolicy(edited("plan", "while True:\n        pass"), limits) as policy:
        guarded = GuardedPolicy(policy, load_baseline("least_loaded"))
        guarded.plan(observation(), 0.3, Memo())
        assert guarded.faults.timeouts == 1
        assert guarded.solve_cpu_s >= 0.3


def test_the_journaled_memo_holds_what_route_left_in_it_across_the_sandbox() -> None:
    counting = edited("route", 'memo["n"] = memo.get("n", 0.0) + 1.0')

    def first_tick(policy: Policy, memo: Memo) -> None:
        policy.should_replan(observation(), memo)

    with SandboxedPolicy(counting, SandboxLimits().patient()) as policy:
        memo = Memo()
        first_tick(policy, memo)
        for _ in range(3):
            policy.dispatch(request_view(), (replica_view(), replica_view(id=1)), memo)
        policy.sync(memo)  # as the controller does
        before = dict(memo)  # what the controller journals as `memo_before` of the next tick
        policy.should_replan(observation(tick=1), memo)
    assert before == pytest.approx({"n": 3.0})
