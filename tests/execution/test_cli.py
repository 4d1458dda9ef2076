from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from execution.cli import app
from execution.workload import open_workload

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:50.99,396,109"
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)
    return path


def run(*arguments: object, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    settings = {"AUTOPOIESIS_DATA": None, "COLUMNS": "140", **(env or {})}
    result = CliRunner().invoke(app, ["workload", *map(str, arguments)], env=settings)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def test_list_names_generators_and_scenarios() -> None:
    code, out, _ = run("list")
    assert code == 0
    for name in (
        "azure-conv",
        "azure-code",
        "mooncake-conversation",
        "servegen-m-large",
        "poisson",
        "azure-volatile",
    ):
        assert name in out
    listed = json.loads(run("list", "--json")[1])
    assert listed["generators"]["azure-conv"]["sha256"]
    assert "flash-crowd" in listed["scenarios"]


def test_show_tells_and_draws(trace: Path, tmp_path: Path) -> None:
    code, out, _ = run("show", trace, "--svg", tmp_path / "w.svg")
    assert code == 0
    assert "2 in 4.3 s" in out
    assert "p50 385" in out
    assert (tmp_path / "w.svg").read_text().startswith("<svg")


def test_show_json_is_one_object(trace: Path) -> None:
    code, out, _ = run("show", trace, "--json", "--model", "mine")
    figures = json.loads(out)
    assert code == 0
    assert figures["count"] == 2
    assert figures["models"] == {"mine": 2}
    assert figures["generated"] is False
    assert len(figures["rates_per_s"]) == 60


def test_scenarios_and_generators_are_shown_by_name(trace: Path, tmp_path: Path) -> None:
    code, out, _ = run("show", "azure-volatile", "--duration", 200, "--rate-scale", 0.2)
    assert code == 0
    assert "down node-0" in out
    assert "generated:azure-conv" in out
    assert run("show", "generated:poisson", "--duration", 20, "--seed", 3)[0] == 0
    (tmp_path / "data" / "azure").mkdir(parents=True)
    shutil.copy(trace, tmp_path / "data" / "azure" / "AzureLLMInferenceTrace_conv_2023.csv")
    code, out, _ = run("show", "spot", "--duration", 20, env={"AUTOPOIESIS_DATA": str(tmp_path / "data")})
    assert code == 0
    assert "(trace: " in out


def test_export_reads_back_equal(tmp_path: Path) -> None:
    out = tmp_path / "w.jsonl"
    code, said, _ = run("export", "mooncake-conversation", out, "--duration", 60, "--seed", 2)
    expected = open_workload("mooncake-conversation", duration_s=60.0, seed=2)
    assert code == 0
    assert f"{len(expected.requests)} requests" in said
    assert open_workload(out) == expected


def test_fit_compares_data_and_generated(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "azure"
    folder.mkdir(parents=True)
    made = open_workload("azure-conv", duration_s=300.0)
    rows = [
        f"2023-11-16 18:{int(r.arrival_s // 60):02d}:{r.arrival_s % 60:010.7f},{r.input_tokens},{r.output_tokens}"
        for r in made.requests
    ]
    (folder / "conv.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    code, out, _ = run("fit", tmp_path / "data", "--out", tmp_path / "fitted")
    assert code == 0
    assert "rate_per_s" in out
    fitted = json.loads((tmp_path / "fitted" / "azure-conv.json").read_text())
    assert fitted["statistics"]["count"] == len(made.requests)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("show", "azure-con"), "did you mean 'azure-conv'"),
        (("show", "{tmp}/bad.csv"), "bad.csv:2: ContextTokens is '-1'"),
        (("show", "{tmp}"), "without chunk-N-trace.csv"),
        (("show", "azure-conv", "--duration", "-5"), "cannot generate -5 s"),
        (("show", "azure-conv", "--svg", "{tmp}/no/such.svg"), "cannot be written"),
        (("export", "azure-conv", "{tmp}/no/such.jsonl"), "cannot be written"),
        pytest.param(("fit", "{tmp}"), "holds none of", marks=pytest.mark.slow),
        (("fit", "{tmp}/absent"), "is no directory"),
        (("show", "azure-volatile", "--rate-scale", "nan"), "at rate nan"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: tuple[str, ...], what: str, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,-1,44\n"
    )
    code, out, err = run(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert code == 2
    assert what in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""


@pytest.mark.slow
def test_the_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "execution", "workload", "show", "absent-file"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'absent-file' is neither")
    assert "Traceback" not in done.stderr
