"""The convention of the benchmarks: arguments, envelope, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.common import (
    BenchmarkInputError,
    Options,
    Target,
    alike_rows,
    parse_options,
    publish,
    run_main,
)


def test_json_is_one_object_with_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(name="made", json=True, seed=3, quick=True)
    rows = [{"what": "a", "value": 1.5}, {"what": "b", "value": float("nan")}]
    targets = [
        Target("fast", 2.0, 1.0, "higher", "1/s"),
        Target("small", 2.0, 1.0, "lower"),
        Target("unknown", float("nan"), 1.0, "lower"),
    ]
    assert publish(options, rows, targets) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert captured.err == ""
    assert printed["benchmark"] == "made"
    assert (printed["seed"], printed["quick"]) == (3, True)
    assert {"commit", "machine"} <= set(printed)
    assert printed["rows"] == [{"what": "a", "value": 1.5}, {"what": "b", "value": None}]
    assert [target["met"] for target in printed["targets"]] == [True, False, False]


def test_people_get_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    publish(Options(name="made"), [{"what": "alpha", "value": 12345.6}], [Target("t", 1, 2, "lower")])
    printed = capsys.readouterr().out
    assert "alpha" in printed
    assert "12,346" in printed
    assert "yes" in printed


def test_rows_of_another_kind_get_a_table_of_their_own() -> None:
    rows = [
        {"case": "a", "x": 1, "y": 2},
        {"case": "b", "x": 1, "y": 2, "z": 3},
        {"at_s": 1.0, "why": "so", "x": 1},
        {"case": "c", "y": 2},
    ]
    assert alike_rows(rows) == [[rows[0], rows[1], rows[3]], [rows[2]]]
    assert alike_rows([]) == []


def test_the_directory_comes_from_the_arguments_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPOIESIS_DATA", str(tmp_path))
    assert parse_options("made", None, []).require_data_dir() == tmp_path
    monkeypatch.delenv("AUTOPOIESIS_DATA")
    assert parse_options("made", None, [str(tmp_path), "--seed", "5"]).seed == 5
    with pytest.raises(BenchmarkInputError, match="needs a data directory"):
        parse_options("made", None, []).require_data_dir()


def test_bad_input_is_one_line_and_exit_code_two(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def main() -> int:
        parse_options("made", None, [str(tmp_path / "absent")])
        return 0

    assert run_main(main) == 2
    assert capsys.readouterr().err == f"error: made: no such data directory: {tmp_path / 'absent'}\n"
