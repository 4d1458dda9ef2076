"""The compiled decode step: right for every shape of model, and found out when it is not."""

from dataclasses import replace
from pathlib import Path

import pytest

from execution.live.decode.backend import decode_subject
from execution.live.decode.cases import synthetic_cases
from execution.live.decode.kernel import DecodeKernel
from execution.live.decode.pack import rounded
from execution.live.decode.proof import check_numerics
from execution.live.decode.shape import PARTS
from execution.live.decode.source import Tile
from tests.execution.live import faulty
from tests.execution.live.conftest import needs_compiler
from tests.execution.live.helpers import ODD, PLAIN, bench_of, native_kernel

pytestmark = [pytest.mark.slow, needs_compiler]
ROWS = 9


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize(
    ("config", "tile", "threads"),
    [(PLAIN, Tile(), 1), (ODD, Tile(4, 3, 32), 1), (ODD, Tile(5, 2, 0), 2)],
    ids=["plain", "odd", "odd, 2 threads"],
)
def test_it_is_right_on_everything(
    config: object, tile: Tile, threads: int, int8: bool, tmp_path: Path
) -> None:
    bench = bench_of(config)  # type: ignore[arg-type]
    if int8:
        bench = replace(bench, shape=replace(bench.shape, int8=True))
        original = bench.weights
        kernel = native_kernel(bench, tmp_path, tile, most_rows=ROWS, threads=threads)
        bench = replace(bench, weights=rounded(original))
        names = [f"layers.{i}.{part}" for i in range(bench.shape.layers) for part in PARTS]
        for name, (matrix, _) in zip([*names, "head"], bench.weights.matrices(), strict=True):
            bench.eager.model.get_submodule(name).register_buffer("weight", matrix)
    else:
        kernel = native_kernel(bench, tmp_path, tile, most_rows=ROWS, threads=threads)
    found = check_numerics(bench, kernel, synthetic_cases(bench.shape, 60, 12, ROWS, seed=3))
    assert found.ok, found.reason
    assert found.cases >= 14
    assert found.error_rms < 1e-5


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (faulty.WrongResult, "wrong result"),
        (faulty.WritesElsewhere, "it wrote to"),
        (faulty.HidesNaN, "no number"),
    ],
)
def test_a_wrong_one_is_found_out(backend: type[faulty.Honest], reason: str, tmp_path: Path) -> None:
    bench = bench_of(PLAIN)
    made = backend()
    subject = decode_subject(bench.shape, ROWS, 1)
    recipe = made.recipes(subject)[0]
    made.compile(subject, recipe, tmp_path)
    library = made.load(subject, recipe, tmp_path)
    kernel = DecodeKernel(
        library, library.prepare(bench.weights), bench.rotations, bench.kv, most_rows=ROWS, threads=1
    )
    found = check_numerics(bench, kernel, synthetic_cases(bench.shape, 60, 12, ROWS, seed=3))
    assert not found.ok
    assert reason in found.reason
