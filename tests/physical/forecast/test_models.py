"""The parts: regression, heat, trends, and how one track learns from what came."""

import math
import random

import numpy as np
import pytest

from physical.forecast.persistence import Persistence
from physical.forecast.rls import RecursiveLeastSquares
from physical.forecast.thermal import ThermalModel
from physical.forecast.track import Track
from physical.forecast.trend import Growth, QueueModel


def test_recursive_least_squares_equals_the_batch_solution() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    y = x @ [2.0, -1.0, 0.5] + rng.normal(scale=0.1, size=200)
    model = RecursiveLeastSquares((0.0, 0.0, 0.0), (1e4, 1e4, 1e4), 1.0)
    for row, value in zip(x, y, strict=True):
        model.update(row.tolist(), float(value))
    assert model.weights == pytest.approx(np.linalg.lstsq(x, y)[0].tolist(), abs=1e-4)


def test_inputs_that_do_not_vary_do_not_blow_it_up() -> None:
    model = RecursiveLeastSquares((0.0, 5.0), (10.0, 3.0), 0.95)
    for _ in range(5000):
        model.update((1.0, 2.0), 50.0)
    assert model((1.0, 2.0)) == pytest.approx(50.0)
    before = list(model.weights)
    model.update((1.0, 2.1), 51.0)
    assert all(abs(a - b) < 20 for a, b in zip(before, model.weights, strict=True))


def _heat(seed: int, seconds: int) -> list[tuple[float, float]]:
    """(power, temperature in whole degrees) of a card with a die and a heat sink, its load changing at random."""
    rng = random.Random(seed)
    ambient, die, sink, power = 30.0, 45.0, 40.0, 100.0
    until = 0.0
    rows = []
    for second in range(seconds):
        if second >= until:
            power, until = rng.choice((90.0, 300.0, 500.0, 700.0)), second + rng.uniform(20, 150)
        for _ in range(10):
            flow = (die - sink) / 0.02
            die += 0.1 * (power - flow) / 100
            sink += 0.1 * (flow - (sink - ambient) / 0.05) / 1000
        rows.append((power, float(round(die))))
    return rows


def test_heat_is_foreseen_far_better_than_by_persistence() -> None:
    rows = _heat(1, 1800)
    model, square, persistent = ThermalModel(), 0.0, 0.0
    for second, (power, degrees) in enumerate(rows[:-30]):
        model.observe(float(second), power, degrees)
        ahead = [p for p, _ in rows[second : second + 30]]
        if second > 300 and max(ahead) == min(ahead):  # the load stays: what physics can know
            square += (rows[second + 30][1] - model.after(30.0, power)) ** 2
            persistent += (rows[second + 30][1] - degrees) ** 2
    assert square < 0.15 * persistent
    assert model.resistance_c_per_w == pytest.approx(0.07, rel=0.25)


def test_a_unit_of_constant_heat_stays_where_it_is() -> None:
    model = ThermalModel()
    for second in range(600):
        model.observe(float(second), 250.0, 61.0)
    assert model.after(60.0) == pytest.approx(61.0, abs=0.5)


def test_power_that_changes_fast_is_expected_to_return() -> None:
    rng = random.Random(3)
    fast, slow = Persistence(2.0), Persistence(2.0)
    for second in range(3000):
        if second % 7 == 0:
            restless = rng.uniform(100, 600)
        if second % 400 == 0:
            steady = rng.uniform(100, 600)
        fast.observe(float(second), restless + rng.gauss(0, 50))
        slow.observe(float(second), steady + rng.gauss(0, 50))  # noise must not hide it
    assert fast.time_constant_s < 20
    assert slow.time_constant_s > 60


def test_lagged_power_solves_the_differential_equation() -> None:
    law = Persistence(2.0)
    for second in range(400):
        law.observe(float(second), 100.0 if second < 300 else 400.0)
    mean, back_s, tau_s, lagged = law.mean, law.time_constant_s, 15.0, 120.0
    stepped, dt = lagged, 1e-3
    for i in range(int(20 / dt)):
        power = mean + (law.now - mean) * math.exp(-i * dt / back_s)
        stepped += dt * (power - stepped) / tau_s
    assert law.lagged(lagged, tau_s, 20.0) == pytest.approx(stepped, rel=1e-3)


def test_growth_follows_a_line_and_lets_it_fade() -> None:
    growth = Growth()
    for second in range(200):
        growth.observe(float(second), 5.0 * second)
    assert growth.after(10.0) == pytest.approx(995 + 50, rel=0.03)
    assert growth.after(600.0) < 995 + 5 * 61  # no trend goes on for ever


def test_a_queue_grows_by_what_exceeds_its_service() -> None:
    queue, waiting, arrived, served = QueueModel(), 0.0, 0.0, 0.0
    for second in range(120):
        arrived += 12
        done = min(waiting + 12, 10)
        served += done
        waiting += 12 - done
        queue.observe(float(second), waiting, arrived, served)
    assert queue.after(30.0) == pytest.approx(waiting + 60, rel=0.05)
    assert queue.served_per_s == pytest.approx(10)
    for second in range(120, 400):
        arrived += 2
        done = min(waiting + 2, 10)
        served += done
        waiting += 2 - done
        queue.observe(float(second), waiting, arrived, served)
    assert queue.after(60.0) == 0.0


def test_an_interval_comes_to_hold_what_it_says() -> None:
    rng = random.Random(7)
    track = Track(5.0, 0.9, width=0.1)  # far too narrow at first
    value = 0.0
    for second in range(3000):
        value += rng.gauss(0, 1)
        track.came(float(second), value)
        track.say(float(second), value, value)
    error, persistence, skill, coverage = track.scores
    assert coverage == pytest.approx(0.9, abs=0.03)
    assert abs(skill) < 0.05  # nothing can be known of a random walk
    assert error == pytest.approx(persistence, rel=0.05)


def test_a_model_that_misleads_is_not_believed_for_long() -> None:
    rng = random.Random(5)
    track = Track(1.0, 0.9, width=1.0, weight=1.0)
    value = 0.0
    for second in range(2000):
        value += rng.gauss(0, 1)
        track.came(float(second), value)
        track.say(float(second), value, value + rng.gauss(0, 5))
    assert track.scores[2] > -0.1


def test_outcomes_that_come_too_late_are_not_scored() -> None:
    track = Track(1.0, 0.9, width=1.0)
    track.say(0.0, 5.0, 5.0)
    track.came(60.0, 9.0)
    assert track.count == 0
