"""Commands to a running loop: what they leave in the store, and how bad input ends."""

from __future__ import annotations

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
def run(tmp_path: Path) -> Path:
    LiveStore.begin(tmp_path / "live.sqlite").close()
    return tmp_path


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


def test_an_answer_that_does_not_come_in_time_is_exit_code_3_and_still_comes(run: Path) -> None:
    assert ask(run, "unpin", "--wait", "0.3").exit_code == 3
    with LiveStore(run / "live.sqlite") as store:
        Loop(LiveConfig(), store=store).window()
        assert store.command(1).status is CommandStatus.REFUSED
