import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hw_profiles import list_clusters, load_cluster
from hw_profiles.cli import app

from .conftest import CLUSTER, DEVICE, NODE

Write = Callable[..., Path]
SVG = "{http://www.w3.org/2000/svg}"
runner = CliRunner()


def test_list_shows_every_kind() -> None:
    result = runner.invoke(app, ["list"])
    assert result.exit_code == 0
    for text in ("h100-sxm", "nvlink4", "hgx-h100", "mixed-64", "qwen3-30b-a3b", "3.35 TB/s", "70.6 B"):
        assert text in result.stdout
    only = runner.invoke(app, ["list", "models"])
    assert "llama-3.1-70b" in only.stdout
    assert "nvlink4" not in only.stdout


def test_list_json_is_one_object() -> None:
    listed = json.loads(runner.invoke(app, ["list", "--json"]).stdout)
    assert set(listed) == {"devices", "links", "nodes", "clusters", "models"}
    assert {m["name"]: m["parameters"] for m in listed["models"]}["llama-3.1-8b"] == 8_030_261_248


@pytest.mark.parametrize("name", ["h100", "meta-llama/Llama-3.1-8B", "nvlink4", "hgx-h100", "qwen3-32b@fp8"])
def test_show_gives_figures_and_sources(name: str) -> None:
    result = runner.invoke(app, ["show", name])
    assert result.exit_code == 0
    assert "source" in result.stdout
    assert json.loads(runner.invoke(app, ["show", name, "--json"]).stdout)["sources"]


def test_show_draws_a_tree_of_the_cluster() -> None:
    out = runner.invoke(app, ["show", "mixed-64"]).stdout
    assert "h100-1" in out
    assert "nvlink4, 8 x ib-ndr" in out
    assert out.count("■") == 64
    shown = json.loads(runner.invoke(app, ["show", "elastic-a100", "--json"]).stdout)
    assert sum(device["spot"] for device in shown["devices"]) == 24
    assert shown["kind"] == "cluster"


@pytest.mark.parametrize("name", list_clusters())
def test_svg_holds_every_device_and_node_inside_its_frame(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    assert runner.invoke(app, ["show", name, "--svg", str(path)]).exit_code == 0
    root = ET.parse(path).getroot()  # noqa: S314 - we drew it ourselves
    topology = load_cluster(name)
    chips = [t.text for t in root.iter(f"{SVG}title") if t.text and ": " in t.text]
    assert [chip.split(":")[0] for chip in chips] == list(topology.devices)
    assert {t.text for t in root.iter(f"{SVG}text")} >= set(topology.nodes)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for box in root.iter(f"{SVG}rect"):
        if "x" in box.attrib:
            assert float(box.attrib["x"]) + float(box.attrib["width"]) <= width
            assert float(box.attrib["y"]) + float(box.attrib["height"]) <= height


def test_users_cluster_file_is_shown_and_drawn(write: Write, tmp_path: Path) -> None:
    write("devices/toy.yaml", DEVICE)
    write("nodes/toy-x2.yaml", NODE)
    path = write("toys.yaml", CLUSTER)
    picture = tmp_path / "toys.svg"
    assert "a-1" in runner.invoke(app, ["show", str(path)]).stdout
    assert runner.invoke(app, ["show", str(path), "--svg", str(picture)]).exit_code == 0
    assert "a-1/gpu1" in picture.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["show", "h1000"], "error: no profile is called 'h1000' (did you mean 'h100'?)"),
        (["show", "l4", "--svg", "x.svg"], "error: --svg draws clusters, and 'l4' is none"),
        (["show", "gone.yaml"], "error: gone.yaml: cannot be read"),
        (["show", "mixed-64", "--svg", "/nowhere/x.svg"], "/nowhere/x.svg"),
        (["show", "qwen3-32b@x"], "error: unknown weight type 'x'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args: list[str], message: str) -> None:
    result = runner.invoke(app, args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_validate_reports_each_problem_on_its_line(write: Write) -> None:
    good = write("devices/toy.yaml", DEVICE)
    bad = write("devices/bad.yaml", DEVICE, ("name: toy", "name: bad"), ("tdp", "tpd"), ("vendor", "vndor"))
    result = runner.invoke(app, ["validate", str(good), str(bad)])
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert f"{bad}:12: unknown key 'tpd_watts' (did you mean 'tdp_watts'?)" in lines
    assert f"{bad}:6: unknown key 'vndor' (did you mean 'vendor'?)" in lines
    assert all(line.startswith(f"{bad}:") for line in lines)
    problems = json.loads(runner.invoke(app, ["validate", str(bad), "--json"]).stdout)["problems"]
    assert [str(bad)] * len(lines) == [p["file"] for p in problems]


def test_validate_passes_what_is_packaged() -> None:
    result = runner.invoke(app, ["validate"])
    assert result.exit_code == 0
    assert "no problem" in result.stdout


def test_calibrate_is_mounted() -> None:
    assert runner.invoke(app, ["calibrate", "--help"]).exit_code == 0
