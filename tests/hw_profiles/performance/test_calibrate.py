"""Calibration from a small directory of the real shape: what is read, refused, and written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hw_profiles import load_device, load_model
from hw_profiles.performance import PerformanceModel
from hw_profiles.performance.calibrate.node import node_of
from hw_profiles.performance.cli import calibrate as command
from hw_profiles.performance.files import read_coefficients

app = typer.Typer()
app.command()(command)
LAYERS = "llmservingsim/profiler/perf/RTXPRO6000/meta-llama/Llama-3.1-8B/bf16/tp1"
RUN = "llmservingsim/bench/RTXPRO6000/Llama-3.1-8B"


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One device's matrix products and attention, twice as slow as its data sheet says."""
    root = tmp_path / "data"
    dense = ["layer,tokens,time_us"]
    for tokens in (1, 8, 64, 256, 1024, 2048):
        for layer, weights in (
            ("qkv_proj", 25e6),
            ("o_proj", 17e6),
            ("gate_up_proj", 117e6),
            ("down_proj", 59e6),
        ):
            memory_s, compute_s = 2 * weights / 1.597e12, 2 * weights * tokens / 500e12
            dense.append(f"{layer},{tokens},{1e6 * (5e-6 + 2 * max(memory_s, compute_s)):.3f}")
    write(root, f"{LAYERS}/dense.csv", "\n".join(dense) + "\n")
    attention = ["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"]
    attention += [f"0,0,{n},{kv},{8 + 4 * n * kv / 1600:.3f}" for n in (1, 8, 64) for kv in (128, 1024, 8192)]
    attention += [f"{c},0,0,0,{8 + c * c / 40000:.3f}" for c in (64, 512, 2048)]
    write(root, f"{LAYERS}/attention.csv", "\n".join(attention) + "\n")
    return root


def run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    return result.exit_code, result.output


def test_what_was_measured_is_what_is_predicted(data: Path, tmp_path: Path) -> None:
    code, output = run(data, "--out", tmp_path / "out", "--date", "2026-01-02")
    assert code == 0, output
    path = tmp_path / "out" / "coefficients.json.gz"
    known = read_coefficients(path)
    provenance = known.provenance
    assert provenance["date"] == "2026-01-02"
    assert {source["path"] for source in provenance["sources"]} == {
        f"{LAYERS}/dense.csv",
        f"{LAYERS}/attention.csv",
    }
    assert all(len(source["sha256"]) == 64 and source["rows"] > 0 for source in provenance["sources"])
    node = node_of(load_device("rtx-pro-6000"), 1)
    perf = PerformanceModel.load(path).replica(
        load_model("llama-3.1-8b"), list(node.devices.values()), 1, 1, node
    )
    kernels_s = 32 * 2 * 2 * 218e6 * 1024 / 500e12
    # Norms, activations and attention come on top: an eighth of the matrix products, by their assumptions.
    assert kernels_s < perf.iteration_s(0, 0, ((1024, 0),)) < 1.25 * kernels_s
    assert known.devices["rtx-pro-6000"].operators["gemm"].error < 0.02  # type: ignore[operator]


def test_equal_data_give_equal_bytes(data: Path, tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        assert run(data, "--out", tmp_path / name, "--date", "2026-01-02")[0] == 0
        written.append((tmp_path / name / "coefficients.json.gz").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        (f"{LAYERS}/dense.csv", "qkv_proj,16,fast", "dense.csv:26: time_us is not a number: 'fast'"),
        (f"{LAYERS}/dense.csv", "qkv_proj,16,-1", "dense.csv:26: time_us must be positive, not -1"),
        (f"{LAYERS}/dense.csv", "qkv_proj,16", "dense.csv:26: has another number of fields"),
        (f"{LAYERS}/attention.csv", "0,0,nan,16,3", "attention.csv:14: n_decode is not finite"),
    ],
)
def test_a_malformed_row_is_named_and_nothing_written(
    data: Path, tmp_path: Path, file: str, line: str, message: str
) -> None:
    with (data / file).open("a") as out:
        out.write(line + "\n")
    code, output = run(data, "--out", tmp_path / "out")
    assert code == 2
    assert message in output.replace("\n", "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "requests.jsonl:1: not JSON"),
        (
            json.dumps({"queued_ts": 2, "first_token_ts": 1, "last_token_ts": 3}),
            "requests.jsonl:1: input_toks",
        ),
        (
            json.dumps(
                {
                    "queued_ts": 2,
                    "first_token_ts": 1,
                    "last_token_ts": 3,
                    "input_toks": 5,
                    "output_toks": 5,
                }
            ),
            "requests.jsonl:1: timestamps are not in order",
        ),
    ],
)
def test_a_malformed_log_is_named(data: Path, tmp_path: Path, record: str, message: str) -> None:
    write(data, f"{RUN}/meta.json", json.dumps({"model": "meta-llama/Llama-3.1-8B", "engine_kwargs": {}}))
    write(data, f"{RUN}/requests.jsonl", record + "\n")
    code, output = run(data, "--out", tmp_path / "out")
    assert code == 2
    assert message in output.replace("\n", "")


def test_a_device_that_is_not_carried_is_skipped_aloud(data: Path, tmp_path: Path) -> None:
    write(data, LAYERS.replace("RTXPRO6000", "ABACUS") + "/dense.csv", "layer,tokens,time_us\no_proj,1,1\n")
    code, output = run(data, "--out", tmp_path / "out")
    assert code == 0
    assert "no profile of ABACUS" in output


def test_bad_arguments_exit_with_two(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run(tmp_path / "absent") == (2, f"error: no such directory: {tmp_path / 'absent'}\n")
    code, output = run(empty)
    assert code == 2
    assert "no measurements found" in output
    assert run(empty, "--date", "tomorrow")[0] == 2
