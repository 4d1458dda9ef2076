"""`physical apply`: real processes of this machine through the command line."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from physical.gate.local import LocalActuator
from physical.placement.cli import app

runner = CliRunner()
SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
CPU = min(os.sched_getaffinity(0))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "gate"
    for pid in LocalActuator(tmp_path / "gate").running().values():
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def plan_file(path: Path, content: object) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def apply(state: Path, plan: str, *options: str) -> tuple[int, str, str]:
    done = runner.invoke(app, ["apply", plan, "--state", str(state), *options])
    return done.exit_code, done.stdout, done.stderr


def test_a_plan_of_actions_is_shown_done_and_done_only_once(state: Path, tmp_path: Path) -> None:
    plan = plan_file(
        tmp_path / "plan.yaml",
        {
            "actions": [
                {"kind": "start", "name": "web", "command": SLEEP, "cpus": [CPU]},
                {"kind": "limit", "target": "web", "resource": "open_files", "value": 99},
            ]
        },
    )
    code, out, _ = apply(state, plan, "--dry-run")
    assert code == 0
    assert "0. start web" in out
    assert "undone by: ending web" in out
    assert not state.exists()
    code, out, err = apply(state, plan, "--yes")
    assert code == 0, err
    assert "done: 2 changed, 0 as they were" in out
    pid = LocalActuator(state).running()["web"]
    assert f"Cpus_allowed_list:\t{CPU}\n" in Path(f"/proc/{pid}/status").read_text()
    code, out, _ = apply(state, plan, "--yes", "--json")
    assert json.loads(out)["changed"] == []
    assert json.loads(out)["running"] == {"web": pid}


@pytest.mark.slow
def test_stages_of_a_placement_become_processes_and_others_stop(state: Path, tmp_path: Path) -> None:
    stages = [
        {"devices": ["here-0/cpu0"], "first_layer": 0, "layers": 2},
        {"devices": ["there-0/cpu0"], "first_layer": 2, "layers": 2},
    ]
    content = {
        "version": 1,
        "models": [{"model": "tiny", "replicas": [{"stages": stages}]}],
        "launch": {"command": [*SLEEP, "{model}", "{first_layer}-{last_layer}", "{other}"]},
    }
    plan = plan_file(tmp_path / "plan.yaml", content)
    code, _, err = apply(state, plan, "--dry-run")
    assert code == 2
    assert "--node with one of here-0, there-0" in err
    first = plan_file(
        tmp_path / "one.yaml", {"actions": [{"kind": "start", "name": "old", "command": SLEEP}]}
    )
    assert apply(state, first, "--yes")[0] == 0
    code, _, err = apply(state, plan, "--yes", "--node", "here-0", "--stop-others")
    assert code == 0, err
    running = LocalActuator(state).running()
    assert list(running) == ["tiny-r0-s0"]
    words = Path(f"/proc/{running['tiny-r0-s0']}/cmdline").read_text().split("\0")
    assert words[-4:-1] == ["tiny", "0-1", "{other}"]


def test_a_refusal_names_the_rule_and_ends_with_3(state: Path, tmp_path: Path) -> None:
    plan = plan_file(tmp_path / "plan.yaml", {"actions": [{"kind": "nice", "target": "pid:1", "nice": 5}]})
    code, _, err = apply(state, plan, "--yes")
    assert code == 3
    assert "refused, step 0: protected: process 1" in err
    assert "refused" in (state / "journal.jsonl").read_text()
    code, out, _ = apply(state, plan, "--dry-run", "--json")
    assert code == 3
    assert json.loads(out)["refusals"][0]["rule"] == "protected"


def test_a_failure_ends_with_1_and_leaves_nothing(state: Path, tmp_path: Path) -> None:
    actions = [
        {"kind": "start", "name": "web", "command": SLEEP},
        {"kind": "start", "name": "bad", "command": ["/no/such/program"]},
    ]
    code, _, err = apply(state, plan_file(tmp_path / "plan.yaml", {"actions": actions}), "--yes")
    assert code == 1
    assert "everything before it was undone" in err
    assert LocalActuator(state).running() == {}


def test_who_does_not_confirm_changes_nothing(state: Path, tmp_path: Path) -> None:
    plan = plan_file(
        tmp_path / "plan.yaml", {"actions": [{"kind": "start", "name": "web", "command": SLEEP}]}
    )
    done = runner.invoke(app, ["apply", plan, "--state", str(state)], input="n\n")
    assert done.exit_code == 1
    assert LocalActuator(state).running() == {}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1, 2]", "a plan is a mapping"),
        ("a: [", "is no YAML"),
        ("acts: []", "unknown key 'acts'"),
        ("version: 2", "this program reads version 1"),
        ("models: []", "not how to start it"),
        ("actions: [{kind: reset}]", "action 0: no mutation of kind 'reset'"),
        ("launch: {command: [ls]}", "no models with replicas"),
        ("launch: {command: [ls], colour: red}\nmodels: []", "no field 'colour'"),
        ("launch: {command: [ls]}\nmodels: [{model: m}]", "not as `physical plan` writes them"),
    ],
)
def test_bad_files_are_one_line_and_exit_2(state: Path, tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(content)
    code, out, err = apply(state, str(path), "--yes")
    assert code == 2
    assert out == ""
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_a_file_that_is_not_there(state: Path, tmp_path: Path) -> None:
    code, _, err = apply(state, str(tmp_path / "none.yaml"))
    assert code == 2
    assert "No such file" in err
