"""Graphs and machines from files, and the command."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from physical.scheduling import Access, GraphError, Problem, host_with_accelerators
from physical.scheduling.cli import app
from physical.scheduling.formats import FormatError, graph_as_json, read_graph, read_machine

GRAPH: dict[str, Any] = {
    "name": "two steps",
    "tasks": [
        {"name": "load", "kernel": "load", "writes": ["x"]},
        {"name": "work", "kernel": "mul", "size": 64, "reads": ["x"], "updates": ["y"]},
        {"name": "done", "kernel": "load", "after": ["work"]},
    ],
    "data": [{"name": "x", "bytes": 1e6}, {"name": "y", "bytes": 2e6, "home": "host"}],
    "durations": {"load": 0.01, "mul": {"cpu": 0.5, "gpu": 0.05}},
}
MACHINE: dict[str, Any] = {
    "name": "small",
    "units": [{"kind": "cpu", "count": 2, "memory": "host"}, {"name": "g", "kind": "gpu", "memory": "card"}],
    "links": [
        {"name": "down", "bytes_per_s": 1e9, "latency_s": 1e-5},
        {"name": "up", "bytes_per_s": 1e9, "streams": None},
    ],
    "hops": [
        {"from": "host", "to": "card", "links": ["down"]},
        {"from": "card", "to": "host", "links": ["up"]},
    ],
}
WORKFLOW: dict[str, Any] = {
    "name": "wf",
    "schemaVersion": "1.5",
    "workflow": {
        "specification": {
            "tasks": [
                {"name": "b", "id": "b1", "parents": ["a1"], "inputFiles": ["f"], "outputFiles": ["g"]},
                {"name": "a", "id": "a1", "parents": [], "inputFiles": [], "outputFiles": ["f"]},
            ],
            "files": [{"id": "f", "sizeInBytes": 100}, {"id": "g", "sizeInBytes": 5}],
        },
        "execution": {
            "tasks": [{"id": "a1", "runtimeInSeconds": 2.0}, {"id": "b1", "runtimeInSeconds": 4.0}]
        },
    },
}
OLD_WORKFLOW: dict[str, Any] = {
    "name": "wf",
    "workflow": {
        "tasks": [
            {
                "name": "a",
                "runtime": 2.0,
                "parents": [],
                "files": [{"link": "output", "name": "f", "size": 100}],
            },
            {
                "name": "b",
                "runtime": 4.0,
                "parents": ["a"],
                "files": [
                    {"link": "input", "name": "f", "size": 100},
                    {"link": "output", "name": "g", "size": 5},
                ],
            },
        ]
    },
}


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_graph_survives_the_way_to_json_and_back(tmp_path: Path) -> None:
    workload = read_graph(written(tmp_path, "g.json", GRAPH))
    assert workload.graph.predecessors == ((), (0,), (1,))
    assert workload.graph.tasks[1].accesses == (("x", Access.READ), ("y", Access.READ_WRITE))
    again = read_graph(written(tmp_path, "again.json", graph_as_json(workload)))
    assert again.graph.tasks == workload.graph.tasks
    assert again.graph.data == workload.graph.data
    machine = read_machine(written(tmp_path, "m.json", MACHINE))
    assert [unit.name for unit in machine.units] == ["cpu0", "cpu1", "g"]
    problem = Problem(again.graph, machine, again.durations({"gpu": 2.0}))
    assert problem.durations == [(0.01, 0.005), (0.5, 0.05), (0.01, 0.005)]


@pytest.mark.parametrize("content", [WORKFLOW, OLD_WORKFLOW])
def test_wfcommons_instances(tmp_path: Path, content: Any) -> None:
    workload = read_graph(written(tmp_path, "wf.json", content))
    assert [task.name[0] for task in workload.graph.tasks] == ["a", "b"]
    assert workload.graph.predecessors == ((), (0,))
    assert {datum.name: datum.nbytes for datum in workload.graph.data} == {"f": 100.0, "g": 5.0}
    machine = host_with_accelerators("m", 1, 1, bytes_per_s=1.0)
    problem = Problem(workload.graph, machine, workload.durations({"gpu": 4.0}))
    assert problem.durations == [(2.0, 0.5), (4.0, 1.0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("[]", "must hold an object"),
        ({"tasks": 3}, "'tasks' must be a list"),
        ({"tasks": [3]}, "'tasks' must be a list of objects"),
        ({"tasks": [{"kernel": "k"}]}, r"tasks\[0\]: 'name' must be text"),
        ({"tasks": [{"name": "a", "size": -1}]}, "'size' must be a number, at least 0"),
        ({"tasks": [], "durations": {"k": {"cpu": "fast"}}}, r"durations.k: 'cpu' must be a number"),
        ({"workflow": {"tasks": [{"name": "a"}]}}, "'runtime' must be a number"),
    ],
)
def test_files_that_cannot_be_read_say_where(tmp_path: Path, content: Any, message: str) -> None:
    path = written(tmp_path, "bad.json", content)
    with pytest.raises(FormatError, match=message) as caught:
        read_graph(path)
    assert str(path) in str(caught.value)


def test_a_circle_in_a_file(tmp_path: Path) -> None:
    tasks = [{"name": "a", "after": ["b"]}, {"name": "b", "after": ["a"]}]
    with pytest.raises(GraphError, match=r"wait for each other: (a -> b -> a|b -> a -> b)"):
        read_graph(written(tmp_path, "circle.json", {"tasks": tasks}))


def test_the_command(tmp_path: Path) -> None:
    graph, machine = written(tmp_path, "g.json", GRAPH), written(tmp_path, "m.json", MACHINE)
    out = tmp_path / "gantt.svg"
    options = ["--machine", str(machine), "--budget-s", "0.05", "--out", str(out)]
    result = CliRunner().invoke(app, ["schedule", str(graph), *options, "--compare"])
    assert result.exit_code == 0, result.output
    assert "lookahead" in result.output
    assert out.read_text().startswith("<svg")
    result = CliRunner().invoke(app, ["schedule", str(graph), *options, "--json"])
    told = json.loads(result.stdout)
    assert {task["name"] for task in told["tasks"]} == {"load", "work", "done"}
    assert told["schedulers"]["planner"]["makespan_s"] == max(task["end_s"] for task in told["tasks"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.json", "--machine", "local-2"], "nowhere.json: No such file"),
        (["{graph}", "--machine", "no-such-cluster"], "no-such-cluster"),
        (["{graph}", "--machine", "{machine}", "--scheduler", "magic"], "no scheduler 'magic'"),
        (["{graph}", "--machine", "{machine}", "--speed", "gpu"], "write KIND=FACTOR"),
        (["{graph}", "--machine", "{graph}"], "'units' must be a list"),
        (["{graph}", "--machine", "{machine}", "--out", "/nowhere/x.svg"], "/nowhere/x.svg"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    graph, machine = written(tmp_path, "g.json", GRAPH), written(tmp_path, "m.json", MACHINE)
    filled = [a.format(graph=graph, machine=machine) for a in arguments]
    result = CliRunner().invoke(app, ["schedule", *filled])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ortools") is None, reason="OR-tools is not installed")
def test_the_command_polishes_small_graphs(tmp_path: Path) -> None:
    graph, machine = written(tmp_path, "g.json", GRAPH), written(tmp_path, "m.json", MACHINE)
    options = ["--machine", str(machine), "--budget-s", "0.05", "--polish-s", "5", "--json"]
    result = CliRunner().invoke(app, ["schedule", str(graph), *options])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["scheduler"] == "planner"
