"""benchmarks.helix on a published model in miniature, written here in the same form."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks import helix
from benchmarks.common import BenchmarkInputError
from benchmarks.placing.clusters import quantity, read_layout
from benchmarks.placing.published import Published
from physical.placement.problem import Run

LAYERS = 4
RATES = {"fast": (90.0, 40.0, 20.0), "slow": (50.0, 15.0)}
KINDS = ("fast", "slow", "slow")


def model() -> str:
    """Rows and columns as Helix writes them."""
    nodes, big = range(len(KINDS)), LAYERS
    held = {i: range(1, len(RATES[kind]) + 1) for i, kind in enumerate(KINDS)}

    def end(i: int, sign: str) -> str:
        return f"{sign} start_{i} " + " ".join(f"{sign} {k} hold_{i}_{k}" for k in held[i])

    pairs = [(i, j) for i in nodes for j in nodes if i != j]
    rows = []
    for i in nodes:
        rows.append(f"hold_constraint_{i}: " + " + ".join(f"hold_{i}_{k}" for k in held[i]) + " = 1")
        rows.append(f"end_constraint_{i}: {end(i, '+')} <= {LAYERS}")
        arriving = [f"flow_source_{i}"] + [f"flow_{j}_{i}" for j in nodes if j != i]
        leaving = [f"flow_{i}_sink"] + [f"flow_{i}_{j}" for j in nodes if j != i]
        rows.append(
            f"node_flow_constraint_{i}: " + " + ".join(arriving) + " - " + " - ".join(leaving) + " = 0"
        )
        rates = "".join(f"- {RATES[KINDS[i]][k - 1]} hold_{i}_{k} " for k in held[i])
        rows.append(f"node_throughput_constraint_{i}: {rates}+ " + " + ".join(arriving) + " <= 0")
        rows.append(f"edge_enable_constr_source_{i}: start_{i} + switch_source_{i} >= 1")
        rows.append(f"edge_disable_constr_source_{i}: start_{i} + {big} switch_source_{i} <= {big}")
        rows.append(f"edge_enable_constr_{i}_sink: {end(i, '-')} + {big - 1} switch_{i}_sink >= -{big - 1}")
        rows.append(f"edge_disable_constr_{i}_sink: {end(i, '-')} + {big} switch_{i}_sink <= 0")
        rows.append(f"edge_flow_constr_source_{i}: flow_source_{i} - 500 switch_source_{i} <= 0")
        rows.append(f"edge_flow_constr_{i}_sink: flow_{i}_sink - 500 switch_{i}_sink <= 0")
    for i, j in pairs:
        rows.append(
            f"edge_disable_constr1_{i}_{j}: {end(i, '+')} - start_{j} + {big} switch_{i}_{j} <= {big}"
        )
        rows.append(
            f"edge_disable_constr2_{i}_{j}: {end(i, '-')} + start_{j} + {big} switch_{i}_{j} <= {big}"
        )
        rows.append(f"edge_flow_constr_{i}_{j}: flow_{i}_{j} - 100 switch_{i}_{j} <= 0")
    switches = [f"switch_source_{i}" for i in nodes] + [f"switch_{i}_sink" for i in nodes]
    switches += [f"switch_{i}_{j}" for i, j in pairs]
    return "\n".join(
        [
            "Maximize",
            " " + " + ".join(f"flow_source_{i}" for i in nodes),
            "Subject To",
            *(f" {row}" for row in rows),
            "Bounds",
            *(f" start_{i} <= {LAYERS - 1}" for i in nodes),
            "Binaries",
            " " + " ".join([f"hold_{i}_{k}" for i in nodes for k in held[i]] + switches),
            "Generals",
            " " + " ".join(f"start_{i}" for i in nodes),
            "End",
            "",
        ]
    )


def solution() -> str:
    """fast 0-2, slow 3, the other slow one beside it: 20 tokens/s."""
    on = {"hold_0_3": 1, "hold_1_1": 1, "hold_2_1": 1, "start_1": 3, "start_2": 3}
    on |= {"switch_source_0": 1, "switch_1_sink": 1, "switch_2_sink": 1, "switch_0_1": 1, "switch_0_2": 1}
    names = [f"start_{i}" for i in range(3)]
    names += [f"hold_{i}_{k}" for i, kind in enumerate(KINDS) for k in range(1, len(RATES[kind]) + 1)]
    names += [f"switch_source_{i}" for i in range(3)] + [f"switch_{i}_sink" for i in range(3)]
    names += [f"switch_{i}_{j}" for i in range(3) for j in range(3) if i != j]
    return "# Objective value = 2.0e+01\n" + "".join(f"{name} {on.get(name, 0)}\n" for name in names)


def cluster() -> str:
    text = "[NodeNames]\ntotal_compute_nodes=3\n"
    for i, kind in enumerate(KINDS):
        text += f"[ComputeNode-{i}]\ntype={kind}\nconnected_nodes=[]\n"
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        text += f"[Link-{a}-{b}]\nbandwidth=1000 * mbps\nlatency=1 * MilliSec\n"
    return text


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "layout_tiny" / "ilp"
    folder.mkdir(parents=True)
    with gzip.open(folder / "ilp_model.lp.gz", "wt") as file:
        file.write(model())
    (folder / "ilp_solution.sol").write_text(solution())
    (tmp_path / "cluster.ini").write_text(cluster())
    (tmp_path / "layout_tiny" / "petals").mkdir()
    layout = "[Settings]\noffset=2\n[Solution]\ncompute_node_2=[0,1,2]\ncompute_node_3=[3]\n"
    (tmp_path / "layout_tiny" / "petals" / "petals_sol.ini").write_text(layout)
    tables = tmp_path / "model_manager" / "tiny" / "fast"
    tables.mkdir(parents=True)
    (tables / "prompt_bs2time.csv").write_text("0,0\n100,2\n200,4\n")
    (tables / "decode_bs2time.csv").write_text("0,0\n10,1\n20,1\n")
    return tmp_path


@pytest.mark.slow
def test_published_figures_are_reproduced_and_passed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert helix.main([str(data), "--json", "--quick", "--peer-s", "0.3"]) == 0
    said = json.loads(capsys.readouterr().out)
    targets = {target["name"]: target for target in said["targets"]}
    assert targets["reproduced/tiny"]["value"] < 1e-9
    assert targets["tokens_per_s/tiny"]["target"] == 20.0
    assert targets["tokens_per_s/tiny"]["value"] == pytest.approx(40.0)  # fast 2 layers, slow 1 and 1
    assert all(target["met"] for target in targets.values())
    rows = {row["method"]: row for row in said["rows"]}
    assert rows["stored layout petals"]["tokens_per_s"] == 20.0
    assert rows["fast, one layer, decode"]["tokens_per_s"] == 20_000.0
    straight = rows["HiGHS on the published model, 2 threads"]["tokens_per_s"]
    assert straight is None or straight <= 40.0 + 1e-6  # whatever it gets done in the time


def test_the_model_itself_refuses_what_breaks_its_rows(data: Path) -> None:
    published = Published(data / "layout_tiny" / "ilp" / "ilp_model.lp.gz")
    problem = published.problem(KINDS)
    assert problem.layers == LAYERS
    assert problem.must_hold
    assert [machine.tokens_per_s for machine in problem.machines] == [RATES[kind] for kind in KINDS]
    good = (Run(0, 2), Run(2, 1), Run(3, 1))
    verdict = published.judge(problem, good)
    assert verdict.feasible
    assert verdict.objective == pytest.approx(40.0)
    beyond = (Run(2, 3), Run(0, 1), Run(1, 1))  # layers 2 to 4 of 4
    assert not published.judge(problem, beyond).feasible
    gap = (Run(0, 2), Run(3, 1), Run(3, 1))
    assert published.judge(problem, gap).objective == pytest.approx(0.0)


def test_quantities_are_numbers_and_units_only(tmp_path: Path) -> None:
    assert quantity("10 * gbps", tmp_path) == 1e10
    assert quantity("-1", tmp_path) == -1.0
    for text in ("__import__('os')", "3 ** 9", "x", "1 / 0"):
        with pytest.raises(BenchmarkInputError, match="cannot read the quantity"):
            quantity(text, tmp_path)


def test_bad_data_is_named(tmp_path: Path, data: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchmarkInputError, match="no model"):
        helix.main([str(tmp_path / "empty")])
    broken = data / "layout_tiny" / "petals" / "petals_sol.ini"
    broken.write_text("[Settings]\n")
    with pytest.raises(BenchmarkInputError, match="is no layout"):
        read_layout(broken)
    (data / "layout_tiny" / "ilp" / "ilp_solution.sol").write_text("start_0 1\n")
    with pytest.raises(BenchmarkInputError, match="is no solution of"):
        helix.main([str(data)])
