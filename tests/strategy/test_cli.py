"""`python -m strategy`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from strategy.baselines import BASELINES, load_baseline
from strategy.cli import app

runner = CliRunner()


def test_list_names_every_baseline() -> None:
    result = runner.invoke(app, ["list"])
    assert result.exit_code == 0
    assert all(name in result.output for name in BASELINES)


def test_show_plain_is_the_very_source() -> None:
    result = runner.invoke(app, ["show", "least_loaded", "--plain"])
    assert result.output == load_baseline("least_loaded").source


@pytest.mark.parametrize("arguments", [["show", "nope"], ["show", "no/such.py"], ["check", "no/such.py"]])
def test_bad_input_is_one_line_and_exit_2(arguments: list[str]) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert arguments[1] in result.stderr


def test_check_accepts_a_baseline(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(load_baseline("kv_aware").source)
    result = runner.invoke(app, ["check", str(file)])
    assert result.exit_code == 0, result.output
    assert load_baseline("kv_aware").digest in result.stdout


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ("return _layout(obs)\n", "return Plan(())\n", "no replica"),
        pytest.param(
            "return first_to_finish(request, replicas, TAIL)", "return 99", "99", marks=pytest.mark.slow
        ),
        pytest.param("return first_come(request)", 'return float("inf")', "refused", marks=pytest.mark.slow),
        pytest.param(
            "return first_come(request)", "return 1 / 0", "ZeroDivisionError", marks=pytest.mark.slow
        ),
        ("    differs,", "    differs,\n    nothing_like_it,", "nothing_like_it"),
        ("def route(", "import os\ndef route(", "may not import os"),
    ],
)
def test_check_says_why_a_policy_cannot_serve(tmp_path: Path, right: str, wrong: str, words: str) -> None:
    source = load_baseline("least_loaded").source
    assert right in source
    file = tmp_path / "mine.py"
    file.write_text(source.replace(right, wrong))
    result = runner.invoke(app, ["check", str(file)])
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
