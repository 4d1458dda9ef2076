"""Matched pairs: by what is known when a request is routed, and not by what came of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loop.contracts import Finish, RequestRecord
from strategy.live.pairs import MatchedPairs
from strategy.live.sequential import REQUEST_CLIP, BettingTest
from tests.loop.builders import request_view


def over(number: int, took_s: float, finish: Finish = Finish.OK, arrival_s: float = 0.0) -> RequestRecord:
    end = arrival_s + took_s
    return RequestRecord(number, "m", finish, arrival_s, arrival_s, arrival_s, end, end, 100, 10, 0, 0, 0, 0)


def pair(tier: int = 0) -> MatchedPairs:
    pairs = MatchedPairs(clip=REQUEST_CLIP)
    pairs.routed(request_view(id=1), False)
    pairs.routed(request_view(id=2, tier=tier), True)
    return pairs


def test_a_pair_is_the_log_ratio_of_challenger_to_champion_whoever_ends_first() -> None:
    for order in ((1, 2), (2, 1)):
        pairs = pair()
        for number in order:
            pairs.finished(over(number, {1: 4.0, 2: 2.0}[number]))
        assert pairs.take(10.0) == pytest.approx((math.log(0.5),))
        assert pairs.take(10.0) == ()


def test_unlike_requests_are_no_pair() -> None:
    pairs = pair(tier=1)
    pairs.finished(over(1, 4.0))
    pairs.finished(over(2, 2.0))
    assert pairs.take(10.0) == ()


def test_a_request_that_is_starved_counts_before_it_ends_and_once() -> None:
    pairs = pair()
    pairs.finished(over(1, 1.0))
    assert pairs.take(2.0) == ()
    assert pairs.take(100.0) == (REQUEST_CLIP,)
    pairs.finished(over(2, 200.0))
    assert pairs.take(300.0) == ()


def test_a_refused_request_loses_and_an_impossible_one_is_nobodys_fault() -> None:
    refused = pair()
    refused.finished(over(1, 1.0))
    refused.finished(over(2, -1.0, Finish.REJECTED))
    assert refused.take(1.0) == (math.inf,)
    impossible = pair()
    impossible.finished(over(2, -1.0, Finish.INFEASIBLE))
    impossible.finished(over(1, 1.0))
    assert impossible.take(1000.0) == ()


def test_two_like_arms_give_pairs_without_a_side_and_little_is_kept() -> None:
    rng = np.random.default_rng(2)
    pairs, test = MatchedPairs(REQUEST_CLIP), BettingTest(REQUEST_CLIP)
    for i in range(4000):
        pairs.routed(request_view(id=i, input_tokens=int(rng.integers(10, 2000))), bool(rng.random() < 0.1))
        pairs.finished(over(i, float(rng.lognormal(0.0, 0.7))))
    test = test.after(pairs.take(5000.0))
    assert test.pairs > 200
    assert abs(test.mean) < 0.15
    assert max(test.better, test.worse) < 20
    assert len(pairs._tracked) < 400
