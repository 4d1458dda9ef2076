"""The table of benchmarks.kernels: what counts for which target, and bad options."""

from functools import partial

import pytest

pytest.importorskip("torch")

from benchmarks import kernels
from benchmarks.common import run_main
from benchmarks.kernelling.timing import interleaved
from execution.compiler.backends.tvm.backend import missing


def row(family: str, rows: int, ratio: float, threads: int = 1) -> dict[str, object]:
    return {"family": family, "rows": rows, "threads": threads, "ratio": ratio, "error": ratio * 1e-6}


def test_targets_are_the_mean_and_the_worst_of_what_they_name() -> None:
    rows = [
        row("rms_norm", 8, 4.0),
        row("rms_norm", 512, 1.0),
        row("int8_linear", 1, 1.3),
        row("int8_linear", 8, 9.0),
    ]
    rows += [row("gemm", 64, 1.0), row("linear", 4, 0.5, threads=2), {"case": "one call", "ms": 0.003}]
    found = {target.name: target for target in kernels.targets_of(rows)}
    assert found["rms_norm/1 threads/mean"].value == pytest.approx(2.0)
    assert found["rms_norm/1 threads/worst"].value == 1.0
    assert not found["rms_norm/1 threads/worst"].met
    assert found["rms_norm, small/1 threads/worst"].value == 4.0
    assert found["int8_linear/1 threads/mean"].value == pytest.approx(1.3)  # GEMV: one row alone
    assert found["gemm/1 threads/worst as picked"].met
    assert not any(name.startswith("linear/2") for name in found)
    assert found["error/worst"].value == pytest.approx(9e-6)


def test_all_calls_are_timed() -> None:
    counts = {"a": 0, "b": 0}

    def count(name: str) -> None:
        counts[name] += 1

    taken = interleaved({name: partial(count, name) for name in counts}, 3, 1e-4)
    assert set(taken) == set(counts)
    assert all(seconds > 0 for seconds in taken.values())
    assert min(counts.values()) >= 3


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_an_unknown_group_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(lambda: kernels.main(["--only", "norms,gemms"])) == 2
    assert capsys.readouterr().err.strip() == (
        "error: kernels: no group 'gemms': there are norms, chains, int8, attention, linear, engine"
    )
