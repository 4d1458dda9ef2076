from __future__ import annotations

import json
import math

import pytest

from benchmarks.common import BenchmarkInputError, parse_options
from benchmarks.counterfactual import CALIBRATION, JUDGED, Live, main, traffic


def test_both_minutes_keep_their_share_of_what_the_engines_can_do() -> None:
    speeds = (6000.0, 2500.0)
    for load in (CALIBRATION, JUDGED):
        requests = traffic(load, speeds, 400.0, "tiny-llama", 3)
        seconds = sum(r.input_tokens / speeds[0] + r.output_tokens / speeds[1] for r in requests)
        assert seconds / 400.0 == pytest.approx(load.share, rel=0.15)
        assert all(r.input_tokens + r.output_tokens < 2048 for r in requests)


def test_more_replicas_than_slots_are_refused() -> None:
    with pytest.raises(BenchmarkInputError, match="--replicas 3"):
        Live("simulated", "tiny-llama", 3, 0)


def test_an_engine_that_is_not_there_is_refused() -> None:
    with pytest.raises(BenchmarkInputError, match="nonsense"):
        main(["--engine", "nonsense", "--quick"])


def test_its_options_are_those_of_all_benchmarks() -> None:
    assert parse_options("counterfactual", "", ["--quick", "--json"]).quick


@pytest.mark.slow
def test_simulated_engines_are_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    """Live processes, in real time, from the first request to the figures. How close the twin comes is judged where times
    are made up (tests/hw_profiles/test_calibrate_journal.py): here a busy machine's delays are in some of them."""
    assert main(["--engine", "simulated", "--seconds", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["case"]: row for row in found["rows"]}
    assert rows["traffic/judged"]["served"] == rows["traffic/judged"]["requests"] >= 60
    assert rows["judged/as recorded"]["requests"] == rows["traffic/judged"]["requests"]
    for case in ("judged/as recorded", "judged/uncalibrated"):
        assert 0.0 <= rows[case]["e2e_median"] < math.inf
    assert {t["name"] for t in found["targets"]} == {
        "e2e_median_error/as recorded",
        "e2e_median_error/same policy",
    }
