from __future__ import annotations

import numpy as np
import pytest

from execution.workload.arrivals import Family, counted_times, renewal_times, unit_gaps, weibull_shape
from execution.workload.fit import fit_arrivals
from execution.workload.statistics import gap_cv


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5])
def test_gaps_have_mean_one_and_the_cv(family: Family, cv: float) -> None:
    gaps = unit_gaps(np.random.default_rng(1), 200_000, cv, family)
    assert gaps.mean() == pytest.approx(1.0, abs=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)


def test_weibull_shape_one_is_exponential() -> None:
    assert weibull_shape(1.0) == pytest.approx(1.0, abs=1e-6)
    assert weibull_shape(1e9) == pytest.approx(0.1)


def test_zero_cv_is_a_metronome() -> None:
    times = renewal_times(np.random.default_rng(0), [2.0], 10.0, 0.0)
    assert np.diff(times) == pytest.approx(np.full(len(times) - 1, 0.5))


@pytest.mark.parametrize("cv", [1.0, 3.0])
def test_the_count_is_unbiased_and_follows_the_profile(cv: float) -> None:
    rates = [1.0, 4.0, 0.0, 2.0]
    runs = [renewal_times(np.random.default_rng(seed), rates, 50.0, cv) for seed in range(200)]
    counts = np.array([np.histogram(times, bins=4, range=(0, 200))[0] for times in runs])
    error = 4 * counts.std(axis=0) / np.sqrt(len(runs)) + 0.01
    assert (np.abs(counts.mean(axis=0) - [50, 200, 0, 100]) <= error).all()
    assert all((np.diff(times) >= 0).all() and times[-1] < 200 for times in runs)


def test_a_profile_repeats_and_may_start_anywhere() -> None:
    times = renewal_times(np.random.default_rng(0), [0.0, 10.0], 5.0, 0.5, start_s=2.5, duration_s=20.0)
    phase = (times + 2.5) % 10.0
    assert len(times) == pytest.approx(100, abs=15)
    assert (phase >= 5.0 - 1e-6).all()


def test_nothing_arrives_without_a_rate() -> None:
    assert len(renewal_times(np.random.default_rng(0), [0.0], 5.0, 1.0)) == 0


@pytest.mark.parametrize("cv", [0.0, 1.0, 30.0, 400.0])
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_counted_times_keep_the_count(cv: float, count: int) -> None:
    times = counted_times(np.random.default_rng(5), count, 600.0, cv)
    assert len(times) == count
    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times < 600.0)).all()


def test_a_very_bursty_process_starts_in_its_steady_state() -> None:
    """An ordinary renewal process would give (25 - 1) / 2 arrivals too many."""
    counts = [len(renewal_times(np.random.default_rng(seed), [1.0], 100.0, 5.0)) for seed in range(600)]
    assert np.mean(counts) == pytest.approx(100, abs=8)


def test_counted_times_favour_no_part_of_the_window() -> None:
    rng = np.random.default_rng(3)
    times = np.concatenate([counted_times(rng, 3, 1.0, 2.0) for _ in range(3000)])
    shares, _ = np.histogram(times, bins=5, range=(0, 1))
    assert shares / len(times) == pytest.approx(np.full(5, 0.2), abs=0.02)


def test_fit_recovers_profile_and_cv() -> None:
    rates = [2.0, 8.0, 4.0]
    times = renewal_times(np.random.default_rng(2), rates, 1000.0, 1.8)
    fitted = fit_arrivals(times, 1000.0, end_s=3000.0)
    assert fitted.rates_per_s == pytest.approx(rates, rel=0.12)
    assert fitted.cv == pytest.approx(1.8, rel=0.08)


def test_fit_sees_through_rounded_times() -> None:
    """Times rounded to 3 s have gaps of 0 and 3 s; the burstiness of the process shows in the counts."""
    times = renewal_times(np.random.default_rng(2), [5.0], 6000.0, 1.0)
    rounded = np.floor(times / 3.0) * 3.0
    assert gap_cv(rounded) > 2.0
    assert fit_arrivals(rounded, 6000.0, end_s=6000.0).cv == pytest.approx(1.0, abs=0.2)
