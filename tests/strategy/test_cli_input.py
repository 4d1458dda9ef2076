"""What `strategy evolve`, `score` and `explain` refuse, each in one line, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from strategy.cli import app

LLM = ("--synthesiser", "llm")
ENDPOINT = ("--base-url", "http://127.0.0.1:1/v1")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("evolve", *LLM), "--synthesiser llm needs --base-url"),
        (("evolve", *LLM, *ENDPOINT), "--synthesiser llm needs --model"),
        (("evolve", "--model", "gpt"), "--base-url and --model are for language models"),
        (("evolve", *LLM, *ENDPOINT, "--model", "m", "--usd-budget", "1"), "--usd-budget needs --price"),
        (("evolve", *LLM, *ENDPOINT, "--model", "m", "--price", "1"), "--price 1: must be two numbers"),
        (("evolve", *LLM, *ENDPOINT, "--model", "m", "--price", "-1/2"), "--price -1/2: prices lie between"),
        (
            ("evolve", *LLM, *ENDPOINT, "--model", "m", "--api-key-env", "NOT_THERE"),
            "--api-key-env NOT_THERE: no such variable",
        ),
        (
            ("evolve", *LLM, *ENDPOINT, *("--model", "m") * 3, *("--price", "1/1") * 2),
            "2 times --price for 3 models",
        ),
        (("evolve", "--policy", "nope"), "nope: neither a file nor a baseline (round_robin"),
        (("evolve", "--policy", "nope.py"), "nope.py: cannot be read"),
        (("evolve", "--workload", "nope"), "nope: neither a file, a scenario"),
        (("evolve", "--workload", "model-mix"), "give --serve twice"),
        (("evolve", "--cluster", "nope"), "unknown cluster 'nope'"),
        pytest.param(
            ("evolve", "--cluster", "laptop-2", "--serve", "bloom-176b"),
            "model bloom-176b fits no group of devices",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("evolve", "--out", "file"),
            "file: cannot be written: it is a file, not a folder",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("evolve", "--archive", "file", "--max-windows", "1"),
            "file: not an archive of evolution",
            marks=pytest.mark.slow,
        ),
        (("score", "nope"), "nope: neither a file nor a baseline"),
        (("score", "abc", "--archive", "gone"), "gone: no such archive"),
        (("score", "round_robin", "--baseline", "nope"), "nope: no such baseline"),
        (("explain", "nope"), "nope: neither a file nor a baseline"),
        (("explain", "least_loaded"), "least_loaded and least_loaded are the same policy"),
        (("explain", "round_robin", "--workload", "nope"), "nope: neither a file, a scenario"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine, and long enough to be looked at" * 40)
    result = CliRunner().invoke(app, list(arguments), env={"AUTOPOIESIS_DATA": None, "NOT_THERE": None})
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert named in line
    assert not (tmp_path / "evolved" / "policy.py").exists()


def test_commands_to_a_running_loop_are_mounted() -> None:
    told = CliRunner().invoke(app, ["--help"]).stdout
    for name in ("promote", "rollback", "pin", "unpin", "kill", "revive", "status"):
        assert f" {name} " in told
