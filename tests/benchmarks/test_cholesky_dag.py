"""The scheduling benchmarks: their readers, and small runs end to end."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import cholesky, dag
from benchmarks.common import BenchmarkInputError

MODEL = """# COMB_0
# device type (CPU - 0, CUDA - 1, OPENCL - 2, MIC - 3)
0
# device id
0
# hash\t\tsize\t\tflops\t\tmean (us)\tdev (us)\tsum\t\tsum2\t\tn
d46431bb\t{size}        \t6.553600e+07   \t{cpu_us}   \t7.810468e+01   \t1.5e+07   \t5.0e+10   \t46
# COMB_1
# device type (CPU - 0, CUDA - 1, OPENCL - 2, MIC - 3)
1
# device id
0
d46431bb\t{size}        \t6.553600e+07   \t{gpu_us}   \t7.810468e+01   \t1.5e+07   \t5.0e+10   \t46
# COMB_2
# device type (CPU - 0, CUDA - 1, OPENCL - 2, MIC - 3)
1
# device id
1
d46431bb\t{size}        \t6.553600e+07   \t{other_us}   \t7.810468e+01   \t1.5e+07   \t5.0e+10   \t46
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Models of a made-up machine with two unlike GPUs."""
    for kernel, tiles in cholesky.TOUCHED.items():
        text = MODEL.format(size=tiles * 1000, cpu_us="9.0e+03", gpu_us="1.0e+03", other_us="3.0e+03")
        (tmp_path / f"chol_{kernel}.toy").write_text(text)
    return tmp_path


def test_models_are_read_with_their_devices(data: Path) -> None:
    (model,) = cholesky.read_models(data)
    assert (model.name, model.gpus) == ("toy", 2)
    assert model.seconds["gemm", "cpu", 3000] == pytest.approx(9e-3)
    assert model.seconds["gemm", "gpu", 3000] == pytest.approx(2e-3)


@pytest.mark.slow
def test_a_made_up_machine_runs_through(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(data), "--quick", "--json", "--tiles", "4", "--tile-bytes", "1000", "--cpus", "3"]
    assert cholesky.main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    over = {(row["links"], row["scheduler"]): row["over_bound"] for row in told["rows"]}
    assert 1.0 <= over["contended", "planner"] <= over["contended", "heft"]
    assert over["contended", "planner"] <= over["contended", "eager"]
    assert told["targets"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tile-bytes", "77"], "was measured at .1000.: choose one with --tile-bytes"),
        (["--tiles", "0"], "must be at least 1"),
    ],
)
def test_bad_input(data: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(BenchmarkInputError, match=message):
        cholesky.main([str(data), "--quick", *arguments])


def test_a_folder_without_models(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkInputError, match="no models"):
        cholesky.read_models(tmp_path)
    (tmp_path / "chol_gemm.half").write_text("# COMB_0")
    with pytest.raises(BenchmarkInputError, match="needs all of"):
        cholesky.read_models(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ortools") is None, reason="OR-tools is not installed")
def test_dag_against_proven_optima(capsys: pytest.CaptureFixture[str]) -> None:
    assert dag.main(["--quick", "--json", "--only", "small"]) == 0
    told = json.loads(capsys.readouterr().out)
    for row in told["rows"]:
        assert row["mean_gap"] >= 0.0, "nothing is shorter than a proven optimum"
    assert {row["scheduler"] for row in told["rows"]} >= {"planner", "heft", "peft", "lookahead", "dmdas"}
