"""The paired test: known values, and decisions on drawn times."""

import random

import pytest

from execution.live.significance import paired_speed, signed_rank_p


def test_the_normal_approximation_of_wilcoxons_own_example() -> None:
    # Wilcoxon, 1945: differences of paired plots; T of the negative ranks is 3 of 8 pairs, exact p = 0.02 one-sided
    p = signed_rank_p([0.5, 1.0, -0.2, 2.0, 1.5, 3.0, -0.4, 2.5])
    assert p == pytest.approx(0.0207, abs=0.003)


def test_ties_share_ranks_and_zeros_say_nothing() -> None:
    assert signed_rank_p([1.0, -1.0, 1.0, -1.0]) > 0.5
    assert signed_rank_p([0.0, 0.0]) == 1.0


def test_a_gain_beyond_what_is_asked_is_found_and_one_below_is_not() -> None:
    rng = random.Random(3)
    before = [rng.lognormvariate(0, 0.2) for _ in range(40)]
    after = [b / 1.3 * rng.lognormvariate(0, 0.05) for b in before]
    assert paired_speed(before, after, threads=1, min_gain=1.1).ok
    told = paired_speed(before, after, threads=1, min_gain=1.5)
    assert not told.ok
    assert "1.50x" in told.reason
    assert told.low < 1.3 < told.high


def test_outliers_of_a_busy_machine_do_not_decide() -> None:
    before = [1.0 + 0.01 * i for i in range(20)]
    after = [0.7 * b for b in before]
    after[3] = after[11] = 50.0
    assert paired_speed(before, after, threads=1, min_gain=1.05).ok


def test_nothing_measured_is_no_gain() -> None:
    assert not paired_speed([], [], threads=1).ok
