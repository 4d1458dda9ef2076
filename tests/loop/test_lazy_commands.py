"""`--help` is quick, since a command is imported when it is called; and it says what the command says of itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from loop.cli import root
from loop.lazy_commands import add_lazily

HEAVY = {
    *("numpy", "scipy", "torch", "ortools", "tvm", "networkx", "plotly", "libcst", "highspy", "cma"),
    *("xgboost", "onnx", "onnxruntime", "sklearn", "transformers", "uvicorn", "starlette"),
}
LIGHT = (
    ("--help",),
    *((group, "--help") for group in ("loop", "strategy", "execution", "physical", "profiles")),
    *(("execution", command, "--help") for command in ("show", "tune", "profile", "cache")),
    *(("physical", command, "--help") for command in ("plan", "watch", "probe", "apply", "options")),
    ("profiles", "list", "--help"),
    ("execution", "tune", "nosuch:Thing"),
)
ASK = """
import json, sys
from typer.testing import CliRunner
from loop.cli import root
done = [CliRunner().invoke(root, words) for words in json.loads(sys.argv[1])]
said = [[one.exit_code, one.output] for one in done]
print(json.dumps({"said": said, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


@pytest.mark.slow
def test_help_and_a_wrong_target_import_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(LIGHT)], capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    for words, (code, output) in zip(LIGHT, seen["said"], strict=True):
        assert code == (0 if "--help" in words else 2), (words, output)
        assert "Usage:" in output if "--help" in words else "nosuch" in output, (words, output)
    assert not HEAVY & set(seen["loaded"])


def lazy_commands() -> list[tuple[str, object, object]]:
    """Every command that is imported when it is called: its words, what stands for it, and itself."""
    found = []
    waiting = [("autopoiesis", typer.main.get_command(root))]
    while waiting:
        words, command = waiting.pop()
        stand_in = command
        if hasattr(command, "imported"):
            command = command.imported()
            found.append((words, stand_in, command))
        waiting += [(f"{words} {name}", inner) for name, inner in getattr(command, "commands", {}).items()]
    return found


def test_help_says_of_each_lazy_command_what_it_says_of_itself() -> None:
    found = lazy_commands()
    assert {"autopoiesis loop serve", "autopoiesis strategy archive", "autopoiesis profiles calibrate"} <= {
        words for words, _, _ in found
    }
    for words, stand_in, command in found:
        (own, *_) = command.help.split("\n\n")
        assert stand_in.help == " ".join(own.split()), words


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    add_lazily(app, "archive", "loop.commands.archive:app", about="A group.")
    add_lazily(app, "unpin", "loop.commands.live:unpin", about="A command.")
    add_lazily(app, "gone", "loop.commands.live:gone", about="Is not there.")
    return app


def test_usage_and_errors_are_the_commands_own(app: typer.Typer) -> None:
    said = CliRunner().invoke(app, ["archive", "diff", "--help"], prog_name="prog")
    assert "Usage: prog archive diff [OPTIONS]" in said.output
    said = CliRunner().invoke(app, ["unpin", "--nosuch"], prog_name="prog")
    assert said.exit_code == 2
    assert "Usage: prog unpin [OPTIONS]" in said.output
    assert "No such option: --nosuch" in said.output
    said = CliRunner().invoke(app, ["unpni"], prog_name="prog")
    assert "Did you mean 'unpin'" in said.output


def test_a_command_that_is_not_where_it_should_be_fails_only_when_called(app: typer.Typer) -> None:
    assert "Is not there." in CliRunner().invoke(app, ["--help"]).output
    assert isinstance(CliRunner().invoke(app, ["gone"]).exception, AttributeError)
