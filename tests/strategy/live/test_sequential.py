"""The sequential test: its errors under the null, looked at after every pair, and how soon it stops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy.live.sequential import REQUEST_CLIP, WINDOW_CLIP, BettingTest

ALPHA = 0.05


def first_signal(ratios: np.ndarray, clip: float, side: str) -> int | None:
    """After how many pairs the test first spoke, looking after each one; None: never."""
    test = BettingTest(clip)
    for i, x in enumerate(ratios, 1):
        test = test.after([float(x)])
        if getattr(test, side) >= 1.0 / ALPHA:
            return i
    return None


def share_of_false_alarms(noise: str, clip: float, side: str, *, runs: int = 150, pairs: int = 80) -> float:
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(runs):
        if noise == "narrow":
            x = rng.normal(0.0, 0.03, pairs)
        elif noise == "wide":
            x = rng.normal(0.0, 1.0, pairs)
        else:  # rare large wins against frequent small losses: mean zero after the clip
            x = np.where(rng.random(pairs) < 0.1, -9.0, 1.0) * clip / 9.0
        alarms += first_signal(x, clip, side) is not None
    return alarms / runs


@pytest.mark.parametrize("side", ["better", "worse"])
@pytest.mark.parametrize(
    ("noise", "clip"),
    [
        pytest.param("narrow", WINDOW_CLIP, marks=pytest.mark.slow),
        pytest.param("wide", REQUEST_CLIP, marks=pytest.mark.slow),
        ("skewed", WINDOW_CLIP),
    ],
)
def test_looking_after_every_pair_does_not_inflate_the_error(noise: str, clip: float, side: str) -> None:
    share = share_of_false_alarms(noise, clip, side)
    # the standard error of 150 runs is 1.8 %: three of them above the level would be a broken test
    assert share <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 150)


def test_the_level_is_kept_at_the_edge_of_the_null_with_the_worst_noise() -> None:
    """Fair coins at the clip are where a gambler wins most easily by luck: the level still holds."""
    rng = np.random.default_rng(3)
    alarms = sum(
        first_signal(rng.choice([-1.0, 1.0], 100) * WINDOW_CLIP, WINDOW_CLIP, "better") is not None
        for _ in range(150)
    )
    assert 0 < alarms / 150 <= ALPHA + 0.04  # and it is not so timid that it never errs


@pytest.mark.parametrize(("effect", "at_most"), [(-0.3, 7), (-0.2, 10), (-0.1, 25)])
def test_it_stops_early_on_large_effects(effect: float, at_most: int) -> None:
    rng = np.random.default_rng(5)
    stops = [first_signal(rng.normal(effect, 0.03, 100), WINDOW_CLIP, "better") for _ in range(20)]
    assert all(s is not None and s <= at_most for s in stops)


def test_a_policy_that_is_worse_is_found_out_by_requests_of_any_length() -> None:
    rng = np.random.default_rng(11)
    stops = [first_signal(rng.normal(0.5, 0.8, 200), REQUEST_CLIP, "worse") for _ in range(20)]
    assert all(s is not None for s in stops)
    assert np.median([s for s in stops if s is not None]) < 60


@given(st.lists(st.floats(-3.0, 3.0, allow_nan=False), max_size=60))
def test_its_two_sides_mirror_each_other_and_pairs_may_come_in_any_portions(values: list[float]) -> None:
    test = BettingTest(WINDOW_CLIP).after(values)
    mirrored = BettingTest(WINDOW_CLIP).after([-v for v in values])
    assert test.better == pytest.approx(mirrored.worse)
    assert test.mean == pytest.approx(-mirrored.mean)
    half = len(values) // 2
    portions = BettingTest(WINDOW_CLIP).after(values[:half]).after(values[half:])
    assert portions == test
    assert abs(test.mean) <= WINDOW_CLIP + 1e-12


def test_infinite_ratios_count_as_the_clip_and_nan_is_an_error() -> None:
    test = BettingTest(0.5).after([math.inf, -math.inf, math.inf])
    assert test.mean == pytest.approx(0.5 / 3)
    with pytest.raises(ValueError, match="not a number"):
        test.after([math.nan])
