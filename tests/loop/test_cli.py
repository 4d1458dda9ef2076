"""The whole command as its users meet it: bad input, `loop replay` end to end, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from execution.workload import open_workload
from execution.workload.native import write
from loop.cli import root
from loop.commands.failing import InputError
from loop.commands.inputs import choose_models, named_models, open_trace, read_policies
from strategy.baselines import list_baselines, load_baseline
from tests.foreign import foreign_files

AZURE_HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
QUICK = ("--max-windows", "2", "--no-oracle", "--no-searched", "--baseline", "round_robin", "--workers", "2")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOPOIESIS_DATA", raising=False)
    return tmp_path


def refused(*arguments: str) -> str:
    """The one line that a command says before it leaves with exit code 2."""
    result = CliRunner().invoke(root, list(arguments), env={"AUTOPOIESIS_DATA": None})
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def policy_file(path: Path, old: str = "", new: str = "") -> Path:
    """A copy of a baseline, with a part of it replaced."""
    source = load_baseline("round_robin").source
    assert old in source
    path.write_text(source.replace(old, new, 1) if old else source)
    return path


ROUTE = "    weights = throughput_weights("
HANG = "    turn = 1\n    while turn > 0:\n        turn += 1\n    return turn\n" + ROUTE


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--cluster", "nope"], "unknown cluster 'nope'"),
        (["--model", "nope"], "unknown model 'nope'"),
        pytest.param(
            ["--cluster", "laptop-2", "--model", "bloom-176b"],
            "model bloom-176b fits no group of devices",
            marks=pytest.mark.slow,
        ),
        (["--baseline", "nope"], "nope: no such baseline"),
        (["--first", "nope"], "nope: no such baseline"),
        (["--first", "none"], "none: no such baseline"),
        (["--first", "all"], "all: no such baseline"),
        (["--trace", "nope"], "nope: neither a file, a scenario (azure-volatile"),
        (["--trace", "x" * 5000], "neither a file"),
        (["--trace", "model-mix"], "model-mix: needs a second model beside llama-3.1-70b"),
        (["--trace", "."], "no ServeGen trace"),
        (["--data-dir", "nope"], "nope: no such folder (--data-dir)"),
        (["--policy", "nope.py"], "nope.py: cannot be read: No such file or directory"),
        (["--policy", "."], ".: cannot be read: Is a directory"),
        (["--rate-scale", "inf"], "inf"),
        pytest.param(["--window-s", "inf"], "window of inf s", marks=pytest.mark.slow),
    ],
)
def test_replay_refuses_in_one_line_and_writes_nothing(here: Path, arguments: list[str], named: str) -> None:
    assert named in refused("loop", "replay", "--out", "results", *arguments)
    assert not (here / "results" / "result.json").exists()


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("", "trace.csv: holds no requests"),
        (
            "2023-11-16 18:17:03.9,374,44\n2023-11-16 18:17:02.9,374,44\n",
            "trace.csv:3: arrives 1 s before line 2",
        ),
        ("2023-11-16 18:17:03.9,-374,44\n", "trace.csv:2: ContextTokens is '-374'"),
        ("2023-11-16 18:17:03.9,374\n", "trace.csv:2: has 2 fields, not 3"),
    ],
)
def test_replay_refuses_a_malformed_trace(here: Path, rows: str, named: str) -> None:
    (here / "trace.csv").write_text(AZURE_HEAD + rows)
    assert named in refused("loop", "replay", "--trace", "trace.csv", "--out", "results")
    assert not (here / "results").exists()


def test_replay_refuses_an_unknown_key_of_a_cluster(here: Path) -> None:
    (here / "mine.yaml").write_text(
        "version: 1\nname: mine\ntitle: Mine\ncolour: red\nnodes:\n  - {name: desk, node: desktop-4090}\n"
        "sources:\n  all: mine\n"
    )
    assert "mine.yaml:4: unknown key 'colour'" in refused("loop", "replay", "--cluster", "mine.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("out", ["file", "file/below"])
def test_replay_refuses_a_folder_that_cannot_be(here: Path, out: str) -> None:
    (here / "file").write_text("mine")
    assert f"{out}: cannot be written: " in refused("loop", "replay", "--out", out)
    assert (here / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("def plan(", "def plan((", "line "),
        ("def priority(", "def priorities(", "mine.py: does not define priority(request, replica, memo)"),
        ('"""Best', 'import os\n"""Best', "mine.py: line 1: may not import os"),
        ("CONCURRENCY = 1.0", "CONCURRENCY = 1 // 0", "mine.py: cannot be loaded: ZeroDivisionError"),
    ],
)
def test_replay_refuses_a_policy_that_cannot_serve(here: Path, old: str, new: str, named: str) -> None:
    policy_file(here / "mine.py", old, new)
    assert named in refused("loop", "replay", "--policy", "mine.py", "--out", "results")
    assert not (here / "results").exists()


def test_explain_leaves_files_that_are_no_journal_alone(here: Path) -> None:
    for path in foreign_files(here):
        before = path.read_bytes()
        assert f"{path.name}: not a journal" in refused("loop", "explain", "0", "--journal", path.name)
        assert path.read_bytes() == before
    assert "gone: no such journal" in refused("loop", "explain", "0", "--journal", "gone")


def test_user_policies_never_stand_in_for_a_baseline(here: Path) -> None:
    paths = [policy_file(here / name) for name in ("round_robin.py", "evolving.py", "mine.py")]
    (here / "below").mkdir()
    paths.append(policy_file(here / "below" / "mine.py"))
    names = [source.name for source in read_policies(paths)]
    assert names[2] == "mine"
    assert len(set(names)) == 4
    assert not {*names} & {*list_baselines(), "evolving"}


def test_models_are_known_by_alias_and_by_file(here: Path) -> None:
    packaged = Path(__file__).parents[2] / "hw_profiles" / "data" / "models" / "llama-3.1-8b.yaml"
    assert choose_models(["meta-llama/Llama-3.1-8B", "llama-3.1-8b"]) == {"llama-3.1-8b": "llama-3.1-8b"}
    assert choose_models([str(packaged)]) == {str(packaged): "llama-3.1-8b"}


def test_an_exported_workload_keeps_its_models(here: Path) -> None:
    lines = [
        '{"autopoiesis_workload": 1, "name": "two", "source": "by hand"}',
        '{"arrival_s": 0, "model": "qwen3-32b", "input_tokens": 9, "output_tokens": 2}',
        '{"arrival_s": 1, "model": "llama-3.1-8b", "input_tokens": 9, "output_tokens": 2}',
    ]
    (here / "two.jsonl").write_text("\n".join(lines) + "\n")
    models = tuple(named_models("two.jsonl"))
    assert models == ("qwen3-32b", "llama-3.1-8b")
    kept, _ = open_trace("two.jsonl", models, "mixed-64", None, 0)
    assert [r.model for r in kept.requests] == list(models)
    renamed, _ = open_trace("two.jsonl", ("llama-3.1-70b",), "mixed-64", None, 0)
    assert {r.model for r in renamed.requests} == {"llama-3.1-70b"}
    with pytest.raises(InputError, match=r"two\.jsonl: asks for model llama-3\.1-8b, which is not served"):
        open_trace("two.jsonl", ("qwen3-32b", "llama-3.1-70b"), "mixed-64", None, 0)


def test_a_generator_can_be_replayed(here: Path) -> None:
    workload, events = open_trace("azure-code", ("llama-3.1-8b",), "laptop-2", None, 0, 0.1)
    assert workload.generated
    assert events == ()


def autopoiesis(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """The command in a process group of its own, SIGINT as in a terminal."""
    environment = {k: v for k, v in os.environ.items() if k != "AUTOPOIESIS_DATA"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-m", "loop", *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,  # noqa: PLW1509
    )


def running(group: int) -> list[str]:
    """What still runs of a process group; the dead that nobody reaped do not count."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [row[-1] for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


@pytest.mark.slow
def test_a_quick_replay_prints_its_result_as_json(tmp_path: Path) -> None:
    write(open_workload("azure-conv", model="llama-3.1-8b", duration_s=120.0), tmp_path / "mine.jsonl")
    arguments = ("--trace", "mine.jsonl", "--window-s", "60", "--evaluations", "12", *QUICK, "--json")
    process = autopoiesis("replay", *arguments, cwd=tmp_path)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["models"] == ["llama-3.1-8b"]
    assert [s["name"] for s in result["systems"]] == ["round_robin", "evolving"]
    for system in result["systems"]:
        stats = system["run"]["stats"]
        assert stats["finished"] + stats["rejected"] + stats["lost"] == result["requests"] > 0
        for window in system["run"]["windows"]:
            parts = window["serving_s"] + window["solve_s"] + window["reconfiguration_s"]
            assert window["total_s"] == pytest.approx(parts)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    assert (tmp_path / "out" / "report.html").read_text().rstrip().endswith("</html>")
    assert not list((tmp_path / "out").glob("*.part"))


@pytest.mark.slow
def test_a_policy_that_hangs_or_answers_nonsense_is_served_by_the_fallback(tmp_path: Path) -> None:
    policy_file(tmp_path / "hangs.py", ROUTE, HANG)
    policy_file(tmp_path / "nothing.py", ROUTE, "    return None\n" + ROUTE)
    policies = ("--policy", "hangs.py", "--policy", "nothing.py", "--evaluations", "0")
    process = autopoiesis("replay", *policies, *QUICK, "--rate-scale", "0.2", "--json", cwd=tmp_path)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    runs = {s["name"]: s["run"] for s in json.loads(out)["systems"]}
    assert runs["round_robin"]["faults"]["errors"] == runs["round_robin"]["faults"]["timeouts"] == 0
    assert runs["hangs"]["faults"]["timeouts"] > 0
    assert runs["nothing"]["faults"]["errors"] > 0
    assert all(run["stats"]["lost"] == 0 for run in runs.values())
    assert running(process.pid) == []


@pytest.mark.slow
def test_ctrl_c_ends_a_replay_in_one_line(tmp_path: Path) -> None:
    longer = ("8" if word == "2" else word for word in QUICK[:2])  # there is something left to interrupt
    process = autopoiesis("replay", *longer, *QUICK[2:], "--evaluations", "2000", cwd=tmp_path)
    assert process.stderr is not None
    while "evolving" not in process.stderr.readline():  # its second status: everything runs by then
        assert process.poll() is None
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines() == ["interrupted"]
    assert [p for p in running(process.pid) if "resource_tracker" not in p] == []
    assert not {"result.json", "report.html"} & {p.name for p in (tmp_path / "out").iterdir()}
