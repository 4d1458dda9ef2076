"""The fidelity benchmark on a small directory that was made from known truth."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from benchmarks.fidelity.drive import Setup, simulate
from benchmarks.fidelity.folds import folds
from benchmarks.twin_fidelity import main
from hw_profiles import load_device, load_model
from hw_profiles.performance import PerformanceModel
from hw_profiles.performance.calibrate.stepping import step_through
from loop.contracts import Request

RUN = "llmservingsim/bench/RTXPRO6000/Llama-3.1-8B"


def write_run(root: Path, slow: float) -> None:
    """A log as the packaged model would have served it, `slow` times as slow."""
    random = Random(1)
    setup = Setup(
        load_device("rtx-pro-6000"), load_model("llama-3.1-8b"), max_num_seqs=8, max_num_batched_tokens=512
    )
    perf = setup.replica(PerformanceModel.load())
    asked = [(0.2 * i, random.randint(20, 900), random.randint(2, 60)) for i in range(30)]
    times = step_through(perf, asked, max_num_seqs=8, max_num_batched_tokens=512)
    folder = root / RUN
    folder.mkdir(parents=True)
    kwargs = {"max_num_seqs": 8, "max_num_batched_tokens": 512, "tensor_parallel_size": 1}
    (folder / "meta.json").write_text(
        json.dumps({"model": "meta-llama/Llama-3.1-8B", "vllm_version": "0", "engine_kwargs": kwargs})
    )
    records = [
        {
            "queued_ts": 100 + at,
            "first_token_ts": 100 + at + slow * (first - at + perf.first_token_s),
            "last_token_ts": 100 + at + slow * (last - at + perf.first_token_s),
            "input_toks": prompt,
            "output_toks": out,
        }
        for (at, prompt, out), (first, last) in zip(asked, times, strict=True)
    ]
    (folder / "requests.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.slow
@pytest.mark.parametrize(("slow", "error"), [(1.0, 0.0), (1.25, 0.2)])
def test_the_error_is_the_distance_from_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slow: float, error: float
) -> None:
    """The log is none of those that the packaged engine was fitted on, so that engine is judged as it is."""
    write_run(tmp_path, slow)
    assert main([str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (row,) = printed["rows"]
    assert row["n"] == 30
    assert row["e2e_median"] == pytest.approx(error, abs=0.005)
    assert row["tpot_median"] == pytest.approx(error, abs=0.005)
    target = next(t for t in printed["targets"] if t["name"] == "e2e_median_error")
    assert target["met"] is (error < 0.05)


def test_folds_judge_every_row_once_and_never_train_on_its_twins() -> None:
    rows = [(key, copy) for key in range(13) for copy in range(3)]
    seen = []
    for training, judged in folds(rows, lambda row: row[0]):
        assert not {key for key, _ in training} & {key for key, _ in judged}
        assert len(training) + len(judged) == len(rows)
        seen += judged
    assert sorted(seen) == rows


@pytest.mark.slow
def test_a_closed_loop_keeps_its_concurrency(performance: PerformanceModel) -> None:
    setup = Setup(load_device("h100-sxm"), load_model("llama-3.1-8b"))
    left = iter(range(2, 20))

    def follow_up(record: object) -> Request | None:
        number = next(left, None)
        if number is None:
            return None
        return Request(number, record.last_token_s, setup.model.name, 100, 20)  # type: ignore[attr-defined]

    first = [Request(i, 0.0, setup.model.name, 100, 20) for i in range(2)]
    records = simulate(performance, setup, first, follow_up=follow_up)
    assert len(records) == 20
    edges = sorted([(r.arrival_s, 1) for r in records] + [(r.last_token_s, -1) for r in records])
    running = peak = 0
    for _, change in edges:
        running += change
        peak = max(peak, running)
    assert peak == 2


@pytest.fixture(scope="module")
def performance() -> PerformanceModel:
    return PerformanceModel.load()
