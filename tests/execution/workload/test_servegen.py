from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.workload import WorkloadError, open_workload
from execution.workload.readers import servegen
from execution.workload.statistics import gap_cv
from tests.examples import up_to
from tests.execution.workload.strategies import well_formed


def test_rates_lengths_and_silence_follow_the_files(servegen_dir: Path) -> None:
    workload = open_workload(servegen_dir, model="m", duration_s=7200.0, seed=3)
    well_formed(workload)
    bursty = [r for r in workload.requests if r.input_tokens == 5000]
    steady = [r for r in workload.requests if r.input_tokens != 5000]
    assert len(steady) == 4 * 7200  # the counts of measured windows are kept exactly
    assert len(bursty) == 2 * 6000
    assert bursty[0].arrival_s >= 1200.0
    assert {r.output_tokens for r in bursty} == {1, 2}
    assert {r.output_tokens for r in steady} == {7}  # an answer of 0 tokens is none
    share = np.mean([r.input_tokens == 100 for r in steady])
    assert share == pytest.approx(0.5, abs=0.02)
    assert gap_cv(np.array([r.arrival_s for r in steady])) == pytest.approx(1.0, abs=0.05)
    cvs = [
        gap_cv(np.array([r.arrival_s for r in bursty if t <= r.arrival_s < t + 600]))
        for t in range(1200, 7200, 600)
    ]
    assert np.mean(cvs) == pytest.approx(3.0, rel=0.25)


def test_a_cut_is_the_same_part_of_the_whole(servegen_dir: Path) -> None:
    whole = servegen.read(servegen_dir, model="m", duration_s=7200.0, seed=1)
    part = servegen.read(servegen_dir, model="m", start_s=900.0, duration_s=1000.0, seed=1)
    expected = [r.arrival_s - 900.0 for r in whole.requests if 900.0 <= r.arrival_s < 1900.0]
    assert [r.arrival_s for r in part.requests] == expected
    other = servegen.read(servegen_dir, model="m", start_s=900.0, duration_s=1000.0, seed=2)
    assert other.requests != part.requests


def test_rate_scale_scales_the_count(servegen_dir: Path) -> None:
    few = servegen.read(servegen_dir, model="m", duration_s=7200.0, rate_scale=0.01)
    assert len(few.requests) == pytest.approx(0.01 * (4 * 7200 + 2 * 6000), rel=0.1)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ("0,4,1,Gamma,1,1\n0,4,1,Gamma,1,1\n", ":2: window at 0 s is not after 0 s"),
        ("0,-4,1,Gamma,1,1\n", ":1: t_s 0, rate -4"),
        ("0,nan,1,Gamma,1,1\n", ":1: rate is 'nan'"),
        ("0,4,1,Cauchy,1,1\n", ":1: pattern is 'cauchy'"),
        ("0,4,1,,1,1\n", ":1: pattern is ''"),
        ("0,4,1,Gamma\n", ":1: has 4 fields, not 6"),
        ("", ": is empty"),
        ("0,999999,1,Gamma,1,1\n600,999999,1,Gamma,1,1\n", "more than 20000000 requests"),
    ],
)
def test_malformed_rates(rows: str, what: str, servegen_dir: Path) -> None:
    (servegen_dir / "chunk-3-trace.csv").write_text(rows)
    with pytest.raises(WorkloadError, match=r"chunk-3-trace|m-test") as caught:
        open_workload(servegen_dir)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "what"),
    [
        ({"0": {"input_tokens": "__import__('os')", "output_tokens": "{1: 1.0}"}}, "must be a literal"),
        ({"0": {"input_tokens": "{1: 1.0", "output_tokens": "{1: 1.0}"}}, "must be a literal"),
        ({"0": {"input_tokens": "{1: 1.0 2}", "output_tokens": "{1: 1.0}"}}, "is no literal"),
        ({"0": {"input_tokens": "{1: -0.5}", "output_tokens": "{1: 1.0}"}}, "probability -0.5"),
        ({"0": {"input_tokens": "{-1: 0.5}", "output_tokens": "{1: 1.0}"}}, "-1 tokens"),
        ({"0": {"input_tokens": "{1: 1e999}", "output_tokens": "{1: 1.0}"}}, "probability inf"),
        ({"0": {"input_tokens": "{1, 2}", "output_tokens": "{1: 1.0}"}}, "'?' tokens"),
        ({"0": {"input_tokens": "{}", "output_tokens": "{}"}}, "no window has both"),
        ({"0": {"input_tokens": 5}}, "must be a literal"),
        ({"later": {}}, "no window start"),
        ({}, "holds no length distributions"),
        ([], "not an object"),
    ],
)
def test_malformed_distributions(dataset: object, what: str, servegen_dir: Path) -> None:
    (servegen_dir / "chunk-3-dataset.json").write_text(json.dumps(dataset))
    with pytest.raises(WorkloadError, match="chunk-3-dataset") as caught:
        open_workload(servegen_dir)
    assert what in str(caught.value)


def test_a_client_without_lengths_is_named(servegen_dir: Path) -> None:
    (servegen_dir / "chunk-3-dataset.json").unlink()
    with pytest.raises(WorkloadError, match=r"chunk-3-dataset\.json: cannot be read"):
        open_workload(servegen_dir)


@settings(max_examples=up_to(40))
@given(st.text(alphabet="{}0123456789:., eE+-[]()_x'\"*", max_size=60))
def test_any_literal_gives_a_distribution_or_an_error(text: str) -> None:
    try:
        pdf = servegen.parse_pdf("here", text)
    except WorkloadError:
        return
    assert pdf is None or (pdf.values.min() > 0 and pdf.cumulative[-1] == pytest.approx(1.0))


def test_the_real_clients(data_dir: Path) -> None:
    path = data_dir / "servegen" / "language" / "m-large"
    workload = open_workload(path, model="m", start_s=36_000.0, duration_s=120.0, rate_scale=0.5)
    well_formed(workload)
    assert len(workload.requests) > 500
