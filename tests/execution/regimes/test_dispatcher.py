"""Choosing online, on made-up costs: finds the best, keeps to its regret budget, does not flap, follows drift."""

import math
import random

import pytest

from execution.regimes.dispatcher import ORIGINAL, Policy, RegimeState
from execution.regimes.estimate import Estimate, faster


class World:
    """Costs in seconds with multiplicative noise, seeded."""

    def __init__(self, costs: dict[str, float], noise: float = 0.1) -> None:
        self.costs, self.noise = costs, noise
        self.chance = random.Random(0)
        self.ran: list[str] = []

    def play(self, state: RegimeState, calls: int) -> None:
        for _ in range(calls):
            name = state.choose()
            self.ran.append(name)
            state.learn(name, self.costs[name] * math.exp(self.chance.gauss(0, self.noise)))


def _state(*names: str, policy: Policy | None = None) -> RegimeState:
    state = RegimeState(policy or Policy())
    for name in names:
        state.arrive(name)
    return state


def test_the_best_is_found_and_kept() -> None:
    world = World({ORIGINAL: 10e-3, "good": 5e-3, "bad": 30e-3})
    state = _state("good", "bad")
    world.play(state, 400)
    assert state.holder == "good"
    assert world.ran[-100:].count("good") >= 95
    assert world.ran.count("bad") <= 20
    assert state.settled


def test_trials_lose_no_more_than_the_budget() -> None:
    world = World({ORIGINAL: 10e-3, "near": 10.5e-3, "bad": 50e-3})
    state = _state("near", "bad")
    world.play(state, 60)
    before_s = state.regret_s
    world.play(state, 3000)
    # One trial may overshoot: it is allowed by its expected cost.
    assert state.regret_s - before_s <= Policy().regret_share * state.spent_s + 3 * 50e-3


def test_equals_do_not_flap() -> None:
    world = World({ORIGINAL: 10e-3, "same": 10e-3, "too": 9.9e-3}, noise=0.2)
    state = _state("same", "too")
    world.play(state, 2000)
    assert sum("changed" in change.what for change in state.changes) <= 2


def test_drift_is_noticed_and_followed() -> None:
    world = World({ORIGINAL: 10e-3, "small": 5e-3})
    state = _state("small")
    world.play(state, 200)
    assert state.holder == "small"
    world.costs["small"] = 40e-3
    world.play(state, 200)
    assert state.holder == ORIGINAL
    assert any(change.what == "drift" for change in state.changes)


def test_a_single_slow_call_is_no_drift() -> None:
    estimate = Estimate()
    drifts = [estimate.add(5e-3 * (1.02 if i % 2 else 0.98)) for i in range(50)]
    drifts += [estimate.add(0.5)]
    drifts += [estimate.add(5e-3) for _ in range(20)]
    assert not any(drifts)


def test_a_variant_that_arrives_later_is_tried_at_once() -> None:
    world = World({ORIGINAL: 10e-3, "late": 4e-3})
    state = _state()
    world.play(state, 100)
    state.arrive("late")
    world.play(state, 1)
    assert world.ran[-1] == "late"
    world.play(state, 20)
    assert state.holder == "late"


def test_what_is_dropped_never_runs_again() -> None:
    world = World({ORIGINAL: 10e-3, "wrong": 1e-3, "right": 5e-3})
    state = _state("wrong", "right")
    world.play(state, 100)
    assert state.holder == "wrong"
    state.drop("wrong", "gives other numbers")
    assert state.holder == "right"
    state.arrive("wrong")
    before = world.ran.count("wrong")
    world.play(state, 200)
    assert world.ran.count("wrong") == before
    assert state.dropped == {"wrong": "gives other numbers"}


def test_the_original_cannot_be_dropped() -> None:
    state = _state()
    state.drop(ORIGINAL, "no")
    assert state.choose() == ORIGINAL


def test_the_first_call_warms_up_and_does_not_count() -> None:
    state = _state("compiled")
    state.learn("compiled", 30.0)
    assert state.estimates["compiled"].count == 0


@pytest.mark.parametrize(("lead", "expected"), [(1.5, True), (1.01, False)])
def test_leads_need_a_margin(lead: float, expected: bool) -> None:
    holder, challenger = Estimate(), Estimate()
    for _ in range(30):
        holder.add(1e-3 * lead)
        challenger.add(1e-3)
    assert faster(challenger, holder, gain=0.03, confidence=1.5) is expected


def test_what_is_far_behind_is_tried_once() -> None:
    world = World({ORIGINAL: 10e-3, "bad": 100e-3}, noise=0.05)
    state = _state("bad")
    world.play(state, 60)
    assert world.ran.count("bad") == 2  # the first warms up
    assert state.settled


def test_the_last_word_may_be_the_holders() -> None:
    """A challenger has all its trials before the holder has any: it takes over once the holder's cost is known."""
    world = World({ORIGINAL: 10e-3, "good": 3e-3}, noise=0.05)
    state = _state("good")
    for _ in range(4):
        state.learn("good", 3e-3)
    world.play(state, 12)
    assert state.holder == "good"
