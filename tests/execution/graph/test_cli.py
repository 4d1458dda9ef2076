from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from execution.graph.cli import app

RUNNER = CliRunner()
MINE = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
    def forward(self, x, y=None):
        x = F.silu(self.a(x)) * self.b(x)
        return x if y is None else x + y

class Branch(Net):
    def forward(self, x):
        x = self.a(x)
        return self.b(x) if x.sum() > -1e9 else x

def make():
    return Net()

def needs(width):
    return Net()

class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("first line\\nsecond line")

number = 5
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's working directory."""
    (tmp_path / "my_models.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "broken_import.py").write_text("raise OSError('no disk\\nat all')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("AUTOPOIESIS_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.slow
def test_text_of_a_users_module_after_passes(mine: Path) -> None:
    told = RUNNER.invoke(
        app, ["my_models:Net", "--input", "rowsx8", "--text", "--pipeline", "fuse_patterns,dce"]
    )
    assert told.exit_code == 0, told.output
    assert "graph my_models:Net(x: float32[rows, 8])" in told.output
    assert "fused.silu_mul(%linear, %linear_1)" in told.output
    assert not list(mine.glob("*.svg"))


def test_json_is_one_object_and_a_picture_can_go_with_it(mine: Path) -> None:
    told = RUNNER.invoke(
        app,
        [
            "my_models:make",
            "--input",
            "2x8",
            "--input",
            "y=2x8",
            "--json",
            "--out",
            "net.svg",
            "--no-measure",
        ],
    )
    assert told.exit_code == 0, told.output
    (part,) = json.loads(told.stdout)["parts"]
    assert part["flops"] > 2 * 2 * 8 * 8 * 2
    assert {node["name"] for node in part["nodes"]} >= {"x", "y", "linear", "output"}
    assert (mine / "net.svg").read_text(encoding="utf-8").startswith("<svg")
    assert not list(mine.glob("*.part"))


def test_what_does_not_export_is_named_and_the_rest_drawn(mine: Path) -> None:
    told = RUNNER.invoke(app, ["my_models:Branch", "--input", "2x8", "--no-measure"])
    assert told.exit_code == 0, told.output
    assert sorted(path.name for path in mine.glob("*.svg")) == [
        "my_models-Branch.a.svg",
        "my_models-Branch.b.svg",
    ]
    assert "not captured: the module as a whole: " in told.stderr
    assert "Traceback" not in told.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nix"], "write package.module:attribute"),
        (["nix:nix", "--input", "2"], "nix cannot be imported"),
        (["broken_import:x", "--input", "2"], "broken_import cannot be imported: OSError: no disk at all"),
        (["my_models:nix", "--input", "2"], "my_models has nothing called 'nix'"),
        (["my_models:number", "--input", "2"], "is a int, not a torch.nn.Module"),
        (["my_models:needs", "--input", "2"], "needs() fails: TypeError"),
        (["my_models:Net"], "say what it takes"),
        (["my_models:Net", "--input", "z=2x8"], "forward takes x, y, not 'z'"),
        (["my_models:Net", "--input", "2x8:float3"], "write SHAPE, NAME=SHAPE or NAME=SHAPE:DTYPE"),
        (["my_models:Broken", "--input", "2x8"], "RuntimeError: first line"),
        (["my_models:Net", "--input", "2x8", "--pipeline", "csee"], "did you mean cse"),
        (["my_models:Net", "--input", "2x8", "--out", "a.png"], "end the name in .svg"),
        (["my_models:Net", "--input", "2x8", "--out", "no/a.svg"], "there is no directory"),
        (["my_models:Net", "--input", "2x8", "--text", "--json"], "choose one"),
        (["tiny-llama"], "name a part, say tiny-llama:layers.0.mlp"),
        (["multimodal", "--input", "2"], "comes with its own input"),
    ],
)
def test_bad_input_is_one_line(mine: Path, arguments: list[str], message: str) -> None:
    told = RUNNER.invoke(app, arguments)
    assert told.exit_code == 2
    assert message in told.stderr
    assert told.stderr.count("\n") == 1
    assert told.stderr.startswith("error: ")
    del mine


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multimodal", "tiny-llama:layers.0.mlp"])
def test_built_in_models_are_drawn(mine: Path, name: str) -> None:
    told = RUNNER.invoke(app, [name, "--out", "net.svg", "--pipeline", "functionalise,cse,fuse_patterns,dce"])
    assert told.exit_code == 0, told.output
    assert len((mine / "net.svg").read_text(encoding="utf-8")) > 5000
