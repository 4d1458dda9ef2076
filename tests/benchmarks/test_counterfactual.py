from __future__ import annotations

import json

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
    """Live processes whose steps take known times, in real time: what the twin must get right. The bound leaves
    room for a busy machine, whose delays are in the live times only; the uncalibrated twin knows the true costs here."""
    assert main(["--engine", "simulated", "--seconds", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["case"]: row for row in found["rows"]}
    assert rows["traffic/judged"]["served"] == rows["traffic/judged"]["requests"] >= 60
    assert rows["judged/as recorded"]["requests"] == rows["traffic/judged"]["requests"]
    truth = rows["judged/uncalibrated"]["e2e_median"]
    assert rows["judged/as recorded"]["e2e_median"] < truth + 0.15
    assert {t["name"] for t in found["targets"]} == {
        "e2e_median_error/as recorded",
        "e2e_median_error/same policy",
    }
