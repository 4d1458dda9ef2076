from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.contracts import Finish, RequestRecord, Slo
from loop.perception import LogHistogram, StatsCollector

values = st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=300)


@given(values, st.floats(0, 1))
def test_quantile_lies_within_one_percent_of_the_true_order_statistic(data: list[float], q: float) -> None:
    histogram = LogHistogram()
    for value in data:
        histogram.add(value)
    ordered = sorted(data)
    rank = q * (len(data) - 1) + 1
    low, high = ordered[int(rank) - 1], ordered[min(len(data), int(rank) + 1) - 1]
    assert low * 0.99 <= histogram.quantile(q) <= high * 1.01


@given(values)
def test_mean_is_exact_and_memory_is_bounded(data: list[float]) -> None:
    histogram = LogHistogram()
    for value in data * 3:
        histogram.add(value)
    assert histogram.mean == pytest.approx(statistics.fmean(data))
    assert len(histogram._buckets) <= len(data)


@given(values, values)
def test_merging_counts_as_if_all_had_been_added_to_one(first: list[float], second: list[float]) -> None:
    one, other, both = LogHistogram(), LogHistogram(), LogHistogram()
    for histogram, data in ((one, first), (other, second), (both, first + second)):
        for value in data:
            histogram.add(value)
    one.merge(other)
    assert one.count == both.count
    assert one.total == pytest.approx(both.total)
    assert one.quantiles((0.1, 0.5, 0.99)) == both.quantiles((0.1, 0.5, 0.99))


def test_quantiles_of_nothing_are_zero() -> None:
    assert LogHistogram().summary().p99 == 0.0


def record(**changes: object) -> RequestRecord:
    base = RequestRecord(1, "m", Finish.OK, 0.0, 0.1, 0.2, 1.0, 3.0, 100, 11, 20, 0, 0, 0)
    return base._replace(**changes)  # type: ignore[arg-type]


def test_collector_counts_ends_and_slo() -> None:
    stats = StatsCollector(Slo(ttft_s=2.0, tpot_s=0.25))
    stats(record())
    stats(record(first_token_s=2.5, last_token_s=4.0))  # TTFT missed
    stats(record(last_token_s=9.0))  # TPOT missed
    stats(record(finish=Finish.REJECTED))
    stats(record(finish=Finish.LOST))
    summary = stats.stats()
    assert (summary.finished, summary.rejected, summary.lost, summary.good) == (3, 1, 1, 1)
    assert summary.goodput == pytest.approx(1 / 5)
    assert summary.tpot_s.p50 == pytest.approx(0.2, rel=0.02)
    assert summary.cached_tokens == 60
