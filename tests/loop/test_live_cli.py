"""Commands to a running loop: what they leave in the store, and how bad input ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from loop.commands.live import app
from loop.contracts.live import CommandKind, CommandStatus
from strategy.baselines import load_baseline
from strategy.evolve.archive import Archive
from strategy.live import LiveConfig, LiveStore
from tests.strategy.live.test_live import BETTER, Loop


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """The folder of a run that goes on."""
    with LiveStore.begin(tmp_path / "live.sqlite"):
        yield tmp_path


def ask(run: Path, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--run", str(run)], env={"COLUMNS": "200"})


@pytest.mark.parametrize("kind", ["rollback", "pin", "unpin", "kill", "revive"])
def test_a_command_waits_in_the_store(run: Path, kind: str) -> None:
    result = ask(run, kind)
    assert result.exit_code == 0, result.output
    assert f"{kind}: queued as command 1" in result.output
    with LiveStore(run / "live.sqlite") as store:
        assert [c.kind for c in store.pending()] == [CommandKind(kind)]


def test_promote_finds_a_digest_in_the_runs_archive_and_a_file(run: Path) -> None:
    policy = load_baseline("round_robin").as_source()
    with Archive(run / "archive.sqlite") as archive:
        archive.add(policy, "normalised", 0)
    file = run / "mine.py"
    file.write_text(load_baseline("least_loaded").source)
    assert ask(run, "promote", policy.digest).exit_code == 0
    assert ask(run, "promote", "--file", str(file)).exit_code == 0
    with LiveStore(run / "live.sqlite") as store:
        found = [c.policy for c in store.pending()]
    assert [p.source for p in found if p] == [policy.source, file.read_text()]


def test_status_shows_who_serves_what_was_asked_and_what_happened(run: Path) -> None:
    assert "no loop has served here yet" in ask(run, "status").output
    with LiveStore(run / "live.sqlite") as store:
        loop = Loop(LiveConfig(), store=store)
        loop.window()
        store.order(CommandKind.PROMOTE, BETTER)
        store.order(CommandKind.UNPIN)
        loop.window()
        store.order(CommandKind.KILL)
        loop.window()
    told = " ".join(ask(run, "status").output.split())
    for part in (
        "champion first (first)",
        "rests: killed",
        "promote better",
        "refused 1 nothing is pinned",
        "the operator promoted it",
        "promoted -> rolled-back",
    ):
        assert part in told, part


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["promote"], "name one policy"),
        (["promote", "abc", "--file", "x.py"], "name one policy"),
        (["promote", "abc"], "no such archive"),
        (["promote", "--file", "missing.py"], "cannot be read"),
        (["pin", "abc", "--archive", "none.sqlite"], "no such archive"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run: Path, words: list[str], why: str) -> None:
    result = ask(run, *words)
    assert result.exit_code == 2
    assert why in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    with LiveStore(run / "live.sqlite") as store:
        assert store.pending() == []


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    result = ask(tmp_path / "nowhere", "kill")
    assert result.exit_code == 2
    assert "no such live store" in result.stderr
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "live.sqlite").write_text("something else" * 50)
    assert ask(tmp_path, "status").exit_code == 2


COMMANDS = ("promote --file mine.py", "rollback", "pin", "unpin", "kill", "revive")


@pytest.mark.parametrize("words", COMMANDS)
def test_a_run_that_is_over_takes_no_commands_and_says_so(tmp_path: Path, words: str) -> None:
    (tmp_path / "mine.py").write_text(load_baseline("least_loaded").source)
    with LiveStore.begin(tmp_path / "live.sqlite") as store:
        Loop(LiveConfig(), store=store).window()
    result = ask(tmp_path, *words.replace("mine.py", str(tmp_path / "mine.py")).split())
    assert result.exit_code == 2
    assert "the run is over, at the latest after 2" in result.stderr
    assert f"autopoiesis loop replay --out {tmp_path}" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    told = ask(tmp_path, "status")
    assert told.exit_code == 0
    assert "the run is over" in told.output
    with LiveStore(tmp_path / "live.sqlite") as store:
        assert store.commands() == []


@pytest.mark.slow
def test_a_run_that_was_killed_is_over(tmp_path: Path) -> None:
    program = (
        "import os, sys; from strategy.live import LiveStore; s = LiveStore.begin(sys.argv[1]); os._exit(9)"
    )
    path = tmp_path / "live.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], cwd=Path(__file__).parents[2], check=False, timeout=300
    )
    assert done.returncode == 9
    assert "the run is over" in ask(tmp_path, "kill").stderr


def test_a_run_that_ends_while_a_command_waits_is_told_at_once(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter((True, True, False, False))
    monkeypatch.setattr(LiveStore, "attended", lambda _: next(answers))
    result = ask(run, "kill", "--wait", "600")
    assert result.exit_code == 3
    assert "the run ended before it answered" in result.stderr


@pytest.mark.slow
def test_an_answer_that_does_not_come_in_time_is_exit_code_3_and_still_comes(run: Path) -> None:
    assert ask(run, "unpin", "--wait", "0.3").exit_code == 3
    with LiveStore(run / "live.sqlite") as store:
        Loop(LiveConfig(), store=store).window()
        assert store.command(1).status is CommandStatus.REFUSED
