import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hw_profiles import ProfileError, load_cluster
from hw_profiles.cli import app
from hw_profiles.compare import compare

runner = CliRunner()
GPU = """\
version: 1
name: {name}
title: A card
class: gpu
vendor: test
architecture: test
memory_bytes: {memory}
memory_bytes_per_s: 1.0e12
flops: {{fp32: 20.0e12, bf16: 80.0e12}}
tdp_watts: {watts}
idle_watts: 10
usd_per_hour: 1.0
host_load_bytes_per_s: 1.0e9
sources:
  all: "{source}"
"""
NODE = """\
version: 1
name: box-node
title: A box
devices:
  - {{device: {device}, count: {count}}}
host: {{numa_domains: 1, device_link: {link}}}
nics:
  eth: {{link: ethernet-25g, count: {ports}}}
sources:
  all: test
"""
CLUSTER = """\
version: 1
name: box
title: A box
nodes:
  - {name: a, node: box-node, attach: {eth: lan}}
networks:
  lan: {title: lan}
sources:
  all: test
"""


@pytest.fixture
def box(tmp_path: Path) -> Callable[..., Path]:
    """Writes a cluster of one node into a folder of its own."""

    def write(folder: str, **changed: object) -> Path:
        given = {
            "name": "card", "device": "card", "memory": 24 << 30, "watts": 300, "count": 2, "link": "pcie4-x16",
            "ports": 2, "source": "test",
        } | changed  # fmt: skip
        root = tmp_path / folder
        for path, text in (
            (f"devices/{given['name']}.yaml", GPU.format(**given)),
            ("nodes/box-node.yaml", NODE.format(**{**given, "device": given["name"]})),
            ("box.yaml", CLUSTER),
        ):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        return root / "box.yaml"

    return write


def _said(declared: Path, found: Path) -> list[str]:
    return [str(d) for d in compare(load_cluster(str(declared)), load_cluster(str(found))).differences]


def test_the_same_is_equal(box: Callable[..., Path]) -> None:
    assert _said(box("a"), box("b")) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"count": 1}, ["a-0/gpu1: device: declared card, found none: it is missing"]),
        ({"count": 3}, ["a-0/gpu2: device: declared none, found card"]),
        ({"memory": 16 << 30}, [f"a-0/gpu{i}: memory: declared 24 GiB, found 16 GiB" for i in range(2)]),
        ({"watts": 250}, [f"a-0/gpu{i}: tdp_watts: declared 300 W, found 250 W" for i in range(2)]),
        ({"name": "other"}, [f"a-0/gpu{i}: kind: declared card, found other" for i in range(2)]),
        ({"ports": 1}, ["a-0: network ports of 3.12 GB/s: declared 2, found 1"]),
    ],
)
def test_each_difference_is_named(
    changed: dict[str, object], said: list[str], box: Callable[..., Path]
) -> None:
    assert _said(box("a"), box("b", **changed)) == said


def test_a_slower_link_is_named(box: Callable[..., Path]) -> None:
    said = _said(box("a"), box("b", link="pcie4-x8"))
    assert "a-0/gpu0: link to the host slower: declared pcie4-x16 31.5 GB/s, found pcie4-x8 15.8 GB/s" in said
    assert (
        "a-0/gpu0 - a-0/gpu1: link slower: declared 31.5 GB/s, found 15.8 GB/s (memory domains not timed)"
        not in said
    )
    assert "a-0/gpu0 - a-0/gpu1: link slower: declared 31.5 GB/s, found 15.8 GB/s" in said
    assert all("faster" in line for line in _said(box("b", link="pcie4-x8"), box("a")))


def test_what_was_not_measured_is_not_compared(box: Callable[..., Path]) -> None:
    declared = load_cluster(str(box("a")))
    found = load_cluster(str(box("b", watts=100, source="not measured: a stand-in")))
    result = compare(declared, found)
    assert result.equal
    assert "a-0/gpu0: tdp_watts" in result.skipped


def test_small_deviations_are_none(box: Callable[..., Path]) -> None:
    assert _said(box("a"), box("b", memory=(24 << 30) - (300 << 20))) == []


def test_which_node_is_meant(box: Callable[..., Path]) -> None:
    found = load_cluster(str(box("b")))
    with pytest.raises(ProfileError, match="say which one it is"):
        compare(load_cluster("mixed-64"), found)
    with pytest.raises(ProfileError, match="has no node 'x'"):
        compare(load_cluster("mixed-64"), found, node="x")
    assert not compare(load_cluster("mixed-64"), found, node="l4-0").equal
    assert not compare(load_cluster("homogeneous-h100-32"), found).equal  # all nodes are of one shape


def test_validate_compares_and_tells_by_its_exit_code(box: Callable[..., Path]) -> None:
    declared, same, other = str(box("a")), str(box("b")), str(box("c", count=1))
    equal = runner.invoke(app, ["validate", declared, "--found", same])
    assert (equal.exit_code, equal.stdout) == (0, "box: as declared\n")
    differs = runner.invoke(app, ["validate", declared, "--found", other, "--json"])
    assert differs.exit_code == 1
    assert json.loads(differs.stdout)["differences"] == [
        {"where": "a-0/gpu1", "what": "device", "declared": "card", "found": "none: it is missing"}
    ]
    for bad in (["--found", "gone.yaml"], ["--node", "a-0"], [same, "--found", other]):
        refused = runner.invoke(app, ["validate", declared, *bad])
        assert refused.exit_code == 2
        assert refused.stderr.startswith("error: ")
        assert len(refused.stderr.strip().splitlines()) == 1
