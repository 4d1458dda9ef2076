from __future__ import annotations

import random
from dataclasses import replace

from strategy.evolve.idioms import catalogue
from strategy.evolve.synthesise.bandit import Bandit, regime_of, success_of
from strategy.evolve.synthesise.features import FEATURES, Unit, unit_of
from strategy.evolve.synthesise.moves import OPENING, OPERATORS, opening
from tests.strategy.builders import busy, observation

HERE, THERE = (9, 10, 7, 1, 0), (5, 13, 8, 1, 0)


def test_success_moves_an_arm_up_and_failure_down() -> None:
    bandit = Bandit({"a": 0.3, "b": 0.3})
    for _ in range(6):
        bandit.learn("a", HERE, 1.0)
        bandit.learn("b", HERE, 0.0)
    assert bandit.worth("a", HERE) > 0.6
    assert 0.0 < bandit.worth("b", HERE) < 0.2
    weights = bandit.weights(["a", "b"], HERE, 2.0)
    assert weights[0] > 9 * weights[1]


def test_what_paid_here_counts_more_than_what_paid_elsewhere() -> None:
    bandit = Bandit({"a": 0.3})
    for _ in range(6):
        bandit.learn("a", HERE, 1.0)
    assert bandit.worth("a", HERE) > bandit.worth("a", THERE) > 0.33


def test_old_evidence_fades() -> None:
    bandit = Bandit({"a": 0.3, "b": 0.3})
    for _ in range(10):
        bandit.learn("a", HERE, 1.0)
    fresh = bandit.worth("a", HERE)
    for _ in range(200):
        bandit.learn("b", HERE, 0.0)
    assert bandit.worth("a", HERE) < 0.5 * fresh
    for _ in range(10):
        bandit.learn("a", HERE, 0.0)
    assert bandit.worth("a", HERE) < 0.2


def test_success_follows_the_saving() -> None:
    assert success_of(None) == success_of(1.0) == success_of(2.0) == 0.0
    assert 0.5 < success_of(0.99) < success_of(0.96) < success_of(0.9) == 1.0


def test_regimes_tell_demands_and_broken_clusters_apart() -> None:
    quiet, crowd = (observation(demands=[busy("tiny", n)]) for n in (100, 5000))
    assert regime_of(None) == ()
    assert regime_of(quiet) == regime_of(observation(demands=[busy("tiny", 105)]))
    assert regime_of(quiet) != regime_of(crowd)
    broken = replace(quiet, devices=tuple(replace(d, available=d.node != "n00") for d in quiet.devices))
    assert regime_of(broken) != regime_of(quiet)


def test_openings_name_what_there_is_and_begin_with_the_likely_ones() -> None:
    known = {(i.function, i.name) for i in catalogue()}
    assert {idiom for move in OPENING for idiom in move.idioms} <= known
    assert all(0.0 < w < 1.0 for w in (*OPERATORS.values(), *(m.weight for m in OPENING)))
    places = [opening(random.Random(seed)).index(OPENING[0]) for seed in range(20)]
    assert sum(places) / 20 < 6
    first, other = (opening(random.Random(seed)) for seed in (1, 2))
    assert set(first) == set(other) == set(OPENING)
    assert first != other
    assert opening(random.Random(1)) == first


def test_features_have_units_and_ranges_that_hold_their_defaults() -> None:
    for feature in FEATURES:
        low, high = map(float, feature.low_high.split(" to "))
        assert low <= float(feature.default) <= high
        assert unit_of(f"MAX_{feature.constant}") is feature.unit
    assert unit_of("REST_WINDOWS") is Unit.WINDOWS
    assert unit_of("TAIL") is None
