"""The paired test keeps its error rates, and decides early when it is clear."""

from __future__ import annotations

import math
import random

import pytest

from execution.compiler.proof_speed import PairedTest, compare_steps
from execution.compiler.verdict import Speed


def run(gain: float, noise: float, seed: int, *, min_gain: float = 1.03, error_rate: float = 0.01) -> Speed:
    dice = random.Random(seed)
    test = PairedTest(min_gain=min_gain, error_rate=error_rate)
    while True:
        drift = math.exp(dice.gauss(0, 0.5))  # the machine is busy for a while: both suffer
        before = drift * math.exp(dice.gauss(0, noise))
        after = drift / gain * math.exp(dice.gauss(0, noise))
        decision = test.add(before, after)
        if decision is not None:
            return decision


def test_a_clear_gain_is_seen_at_once() -> None:
    speed = run(2.0, 0.1, seed=0)
    assert speed.ok
    assert speed.pairs == 12
    assert speed.low > 1.5
    assert speed.low <= speed.ratio <= speed.high
    assert speed.p_value < 0.01


def test_a_clear_loss_is_seen_at_once() -> None:
    speed = run(0.5, 0.1, seed=0)
    assert not speed.ok
    assert speed.pairs == 12
    assert "not above" in speed.reason


def test_a_small_gain_takes_longer_and_is_seen() -> None:
    seen = [run(1.10, 0.05, seed) for seed in range(50)]
    assert sum(s.ok for s in seen) >= 48
    assert max(s.pairs for s in seen) > 12


@pytest.mark.parametrize("gain", [1.0, 1.03])
def test_without_the_gain_hardly_any_is_accepted(gain: float) -> None:
    accepted = sum(run(gain, 0.3, seed, error_rate=0.05).ok for seed in range(150))
    assert accepted <= 7.5 + 3 * math.sqrt(150 * 0.05 * 0.95)


def test_the_interval_covers_the_true_gain() -> None:
    covered = 0
    for seed in range(150):
        dice = random.Random(seed)
        test = PairedTest(min_gain=1.0, error_rate=0.05, max_pairs=40)
        for _ in range(30):  # no look in between: the interval alone
            test.add(math.exp(dice.gauss(0, 0.2)) * 1.001, math.exp(dice.gauss(0, 0.2)))
        speed = test.undecided()
        covered += speed.low <= 1.001 <= speed.high
    assert covered >= 150 * 0.95 - 3 * math.sqrt(150 * 0.05 * 0.95)


def test_no_difference_is_refused_in_the_end_with_figures() -> None:
    speed = run(1.03, 0.2, seed=3)
    assert not speed.ok
    assert speed.pairs >= 12
    assert "1.03" in speed.reason


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="error_rate"):
        PairedTest(error_rate=0.9)
    with pytest.raises(ValueError, match="above 0"):
        PairedTest().add(0.0, 1.0)


class Machine:
    """Virtual time."""

    def __init__(self, seed: int) -> None:
        self.now_s = 0.0
        self.order: list[str] = []
        self._dice = random.Random(seed)

    def step(self, name: str, seconds: float) -> None:
        self.order.append(name)
        self.now_s += seconds * math.exp(self._dice.gauss(0, 0.05))


def test_steps_are_run_in_place_by_turns() -> None:
    machine = Machine(0)
    speed = compare_steps(
        lambda: machine.step("before", 2e-3),
        lambda: machine.step("after", 1e-3),
        clock=lambda: machine.now_s,
        threads=2,
    )
    assert speed.ok
    assert speed.threads == 2
    assert speed.ratio == pytest.approx(2.0, rel=0.1)
    measured = machine.order[8:]
    assert measured[:4] in (["before", "after", "after", "before"], ["after", "before", "before", "after"])
    assert measured.count("before") == measured.count("after")


def test_short_steps_are_repeated_within_a_pair() -> None:
    machine = Machine(0)
    speed = compare_steps(
        lambda: machine.step("before", 2e-6), lambda: machine.step("after", 1e-6), clock=lambda: machine.now_s
    )
    assert speed.ok
    assert len(machine.order) > 100 * speed.pairs
    assert speed.after_s == pytest.approx(1e-6, rel=0.1)


def test_time_runs_out() -> None:
    machine = Machine(0)
    speed = compare_steps(
        lambda: machine.step("before", 2.0),
        lambda: machine.step("after", 1.0),
        clock=lambda: machine.now_s,
        limit_s=10.0,
    )
    assert not speed.ok
    assert "not shown" in speed.reason
