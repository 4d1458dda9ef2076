from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from scipy.stats import spearmanr

from execution.workload import describe, generate
from execution.workload.plots.sparkline import sparkline
from execution.workload.plots.svg import svg
from execution.workload.statistics import prefix_sharing, rank_correlation, rate_series
from loop.contracts import Request, Workload
from tests.execution.workload.strategies import workloads


def test_statistics_of_a_workload_that_is_known(steady: Workload) -> None:
    numbers = describe(steady)
    assert (numbers.count, numbers.duration_s, numbers.cv) == (1000, 999.0, 0.0)
    assert numbers.rate_per_s == pytest.approx(1000 / 999)
    assert numbers.input_tokens.p50 == pytest.approx(1499.5)
    assert numbers.input_tokens.longest == 1999
    assert numbers.rank_correlation == 0.0  # all answers are equally long
    # 50 first blocks are new, the other 950 were seen; second blocks never.
    assert numbers.prefix_sharing == pytest.approx(950 / 2000)
    assert numbers.models == {"m": 1000}


def test_rank_correlation_is_spearmans_with_ties() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(1, 20, 500)
    second = first + rng.integers(1, 15, 500)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


def test_only_the_head_of_a_prompt_is_shared() -> None:
    rows = [(1, 2, 3), (1, 9, 3), (7, 2)]
    requests = tuple(Request(i, float(i), "m", 2000, 1, b) for i, b in enumerate(rows))
    assert prefix_sharing(Workload("w", requests, "s")) == pytest.approx(1 / 8)


@settings(max_examples=25)
@given(workloads())
def test_any_workload_can_be_described_and_drawn(workload: Workload) -> None:
    assert describe(workload).count == len(workload.requests)
    picture = ET.fromstring(svg(workload))  # noqa: S314 - our own output
    assert picture.tag.endswith("svg")
    assert "nan" not in svg(workload)
    rates = rate_series(workload, 10)
    if len(rates):
        duration_s = workload.requests[-1].arrival_s
        assert rates.sum() * duration_s / 10 == pytest.approx(len(workload.requests))


def test_a_picture_shows_rate_and_lengths() -> None:
    text = svg(generate("azure-conv", model="m", duration_s=600.0))
    assert "Arrival rate" in text
    assert text.count("<path") == 6
    assert text.count("<rect") > 20
    escaped = svg(Workload("<&>", (Request(0, 0.0, "m", 1, 1), Request(1, 1.0, "m", 1, 1)), "s"))
    assert "&lt;&amp;&gt;" in escaped


def test_sparklines_reach_from_zero_to_the_top() -> None:
    assert sparkline([0, 1, 2, 4, 8]) == "▁▂▃▅█"
    assert sparkline([0, 8], ascii_only=True) == ".@"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""
