from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from execution.workload import WorkloadError, open_workload, scenario, write
from loop.contracts import Workload
from tests.examples import up_to
from tests.execution.workload.strategies import workloads


@settings(
    max_examples=up_to(50), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(workloads(min_size=1))
def test_what_is_written_reads_back_equal(tmp_path: Path, workload: Workload) -> None:
    path = tmp_path / "w.jsonl"
    write(workload, path)
    assert open_workload(path) == workload


def test_a_scenario_reads_back_equal(tmp_path: Path) -> None:
    workload, _ = scenario("long-context-wave", model="m", duration_s=120.0)
    write(workload, tmp_path / "w.jsonl")
    assert open_workload(tmp_path / "w.jsonl") == workload


def test_the_model_may_be_replaced(tmp_path: Path, steady: Workload) -> None:
    write(steady, tmp_path / "w.jsonl")
    assert {r.model for r in open_workload(tmp_path / "w.jsonl", model="other").requests} == {"other"}


ROW = {"arrival_s": 0.0, "model": "m", "input_tokens": 1, "output_tokens": 1}
HEAD = {"autopoiesis_workload": 1, "name": "n", "source": "s"}


@pytest.mark.parametrize(
    ("head", "row", "what"),
    [
        ({**HEAD, "autopoiesis_workload": 2}, ROW, ":1: autopoiesis_workload is 2"),
        ({**HEAD, "extra": 2}, ROW, ":1: unknown field 'extra'"),
        ({**HEAD, "generated": "yes"}, ROW, ":1: generated is 'yes'"),
        ({**HEAD, "notes": [1]}, ROW, ":1: notes must be"),
        ({**HEAD, "block_tokens": 0}, ROW, ":1: block_tokens is 0"),
        ({**HEAD, "name": ""}, ROW, ":1: name is ''"),
        (HEAD, {**ROW, "arrival_s": -1.0}, ":2: arrives -1 s after the start"),
        (HEAD, {**ROW, "model": ""}, ":2: model is ''"),
        (HEAD, {**ROW, "tier": -1}, ":2: tier is -1"),
        (HEAD, {**ROW, "typo": 1}, ":2: unknown field 'typo'"),
    ],
)
def test_other_files_are_refused(head: object, row: object, what: str, tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text(f"{json.dumps(head)}\n{json.dumps(row)}\n")
    with pytest.raises(WorkloadError) as caught:
        open_workload(path)
    assert what in str(caught.value)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, steady: Workload) -> None:
    with pytest.raises(WorkloadError, match="cannot be written"):
        write(steady, tmp_path / "absent" / "w.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WorkloadError, match="cannot be written"):
        write(steady, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
