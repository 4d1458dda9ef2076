"""Fits find again what made the data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from hw_profiles import load_device, load_model
from hw_profiles.performance import PerformanceModel
from hw_profiles.performance.calibrate.engine import (
    IterationSample,
    fit_front_end,
    fit_iterations,
    fit_serving,
    replica_of,
)
from hw_profiles.performance.calibrate.fit import fit_operator, grid_of, spread_out
from hw_profiles.performance.calibrate.rows import Sample
from hw_profiles.performance.calibrate.serving_logs import ServedRequest, ServedRun
from hw_profiles.performance.calibrate.shapes import gemm_sample
from hw_profiles.performance.calibrate.stepping import step_through
from hw_profiles.performance.coefficients import (
    Coefficients,
    CoefficientsError,
    EngineFit,
    Grid,
    Roofline,
    ShapedGrids,
)
from hw_profiles.performance.defaults import assumed
from hw_profiles.performance.files import read_coefficients, write_coefficients

PEAK, BANDWIDTH = 1e15, 3e12
TRUE = Roofline(compute=0.7, memory=0.85, launch_s=5e-6)


def gemms(factor: float = 1.0) -> list[Sample]:
    random = Random(1)
    samples = []
    for n, k in ((4096, 4096), (6144, 4096), (28672, 8192), (8192, 14336)):
        for m in (1, 4, 16, 64, 256, 1024, 4096):
            bare = gemm_sample(m, n, k, 1.0)
            time_s = TRUE.time_s(bare.flops, bare.moved_bytes, PEAK, BANDWIDTH)
            samples.append(replace(bare, time_s=time_s * factor * random.uniform(0.98, 1.02)))
    return samples


def test_a_roofline_is_found_again_under_noise() -> None:
    start = Roofline(compute=0.4, memory=0.5, launch_s=1e-6)
    fit = fit_operator(gemms(), start=start, peak_flops=PEAK, bytes_per_s=BANDWIDTH, source="made")
    assert fit.roofline.compute == pytest.approx(0.7, rel=0.05)
    assert fit.roofline.memory == pytest.approx(0.85, rel=0.05)
    assert fit.roofline.launch_s == pytest.approx(5e-6, rel=0.3)
    assert fit.error is not None
    assert fit.error < 0.01
    assert fit.rows == 28


def test_residuals_repair_what_a_roofline_cannot() -> None:
    samples = [replace(s, time_s=s.time_s * (1.5 if s.x == 64 else 1.0)) for s in gemms()]
    fit = fit_operator(samples, start=TRUE, peak_flops=PEAK, bytes_per_s=BANDWIDTH, source="made")
    at = next(s for s in samples if s.x == 64)
    near = fit.residual.nearest((12.0, 12.0))
    assert len(near) == 1
    plain_s = fit.roofline.time_s(at.flops, at.moved_bytes, PEAK, BANDWIDTH)
    assert plain_s * 2.718281828 ** near[0][1].at(6.0) == pytest.approx(at.time_s, rel=0.01)


def test_no_rows_no_fit() -> None:
    with pytest.raises(ValueError, match="made: no rows"):
        fit_operator([], start=TRUE, peak_flops=PEAK, bytes_per_s=BANDWIDTH, source="made")


def test_a_grid_is_exact_at_knots_linear_between_and_flat_outside() -> None:
    grid = grid_of([(0, 0, 0.0), (2, 0, 0.4), (0, 1, 1.0), (2, 1, 1.4)], 1.0, 1.0)
    assert grid.at(2, 1) == pytest.approx(1.4)
    assert grid.at(1, 0.5) == pytest.approx(0.7)
    assert grid.at(-5, -5) == 0.0
    assert grid.at(99, 99) == pytest.approx(1.4)


def test_an_unknown_shape_takes_from_its_neighbours() -> None:
    low, high = (Grid((0.0,), (0.0,), ((value,),)) for value in (0.0, 1.0))
    shaped = ShapedGrids(shapes=((0.0,), (4.0,)), grids=(low, high))
    weights = {grid.values[0][0]: weight for weight, grid in shaped.nearest((1.0,))}
    assert weights[0.0] == pytest.approx(0.9)
    assert ShapedGrids().nearest((1.0,)) == ()


def test_spread_out_keeps_the_extremes() -> None:
    shapes = [(float(i), 0.0) for i in range(20)]
    chosen = spread_out(shapes, 3)
    assert (19.0, 0.0) in chosen
    assert (0.0, 0.0) in chosen
    assert len(chosen) == 3


@pytest.mark.slow
def test_an_engine_is_found_again_from_iterations() -> None:
    random = Random(2)
    samples = []
    for _ in range(60):
        kernels_s, n = random.uniform(0.002, 0.2), random.randint(1, 64)
        measured_s = 1.2 * max(kernels_s, 0.03) + 0.004 + 1e-4 * n
        samples.append(IterationSample(kernels_s, n, measured_s))
    fit = fit_iterations(samples, source="made")
    predicted = [
        max(fit.kernel_scale * s.kernels_s, fit.floor_s) + fit.base_s + fit.per_sequence_s * s.sequences
        for s in samples
    ]
    gaps = sorted(abs(p / s.measured_s - 1) for p, s in zip(predicted, samples, strict=True))
    assert gaps[30] < 0.02
    assert gaps[-1] < 0.15
    assert fit.kernel_scale == pytest.approx(1.2, rel=0.05)


def test_a_front_end_is_found_again() -> None:
    tokens = [100, 500, 1000, 4000, 8000]
    simulated = [0.05 + t * 2e-5 for t in tokens]
    measured = [s + 0.02 + 6e-5 * t for s, t in zip(simulated, tokens, strict=True)]
    assert fit_front_end(simulated, tokens, measured) == pytest.approx((0.02, 6e-5), rel=0.05)


def served_run(performance: PerformanceModel, base_s: float, first_token_s: float) -> ServedRun:
    """A log as an engine with these overheads would have written it."""
    random = Random(3)
    run = ServedRun(
        name="made",
        device=load_device("h100-sxm"),
        model=load_model("llama-3.1-8b"),
        engine="made",
        tp=1,
        pp=1,
        dp=1,
        expert_parallel=False,
        max_num_seqs=16,
        max_num_batched_tokens=2048,
        requests=(),
    )
    asked = [(0.05 * i, random.randint(50, 1500), random.randint(10, 80)) for i in range(40)]
    perf = replica_of(performance.with_engine(EngineFit(base_s, 2e-6)), run)
    times = step_through(perf, asked, max_num_seqs=16, max_num_batched_tokens=2048)
    requests = tuple(
        ServedRequest(at, prompt, out, first - at + first_token_s, last - at + first_token_s)
        for (at, prompt, out), (first, last) in zip(asked, times, strict=True)
    )
    return replace(run, requests=requests)


def test_overheads_are_found_again_from_a_serving_log(performance: PerformanceModel) -> None:
    run = served_run(performance, base_s=3e-3, first_token_s=0.012)
    fit = fit_serving(performance, [run], EngineFit(base_s=5e-4, per_sequence_s=2e-6))
    assert fit.base_s == pytest.approx(3e-3, rel=0.05)
    assert fit.first_token_s == pytest.approx(0.012, rel=0.15)
    assert fit.error is not None
    assert fit.error < 0.05  # of E2E before the first-token overhead


class OneSecond:
    """Every iteration takes a second."""

    padded = False

    def iteration_s(self, n: int, kv: int, chunks: object) -> float:
        return 1.0


def test_stepping_by_hand() -> None:
    """Budget 8, two seats: A's prompt of 12 takes two iterations, B joins the second one."""
    done = step_through(
        OneSecond(),  # type: ignore[arg-type]
        [(0.0, 12, 2), (0.5, 4, 1), (0.5, 4, 1)],
        max_num_seqs=2,
        max_num_batched_tokens=8,
    )
    assert done == [(2.0, 3.0), (2.0, 2.0), (3.0, 3.0)]


def test_coefficients_survive_a_round_trip_and_are_written_alike(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json.gz", tmp_path / "b.json.gz"
    write_coefficients(assumed(), first)
    write_coefficients(read_coefficients(first), second)
    assert first.read_bytes() == second.read_bytes()
    assert read_coefficients(second) == assumed()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read coefficients"),
        ("[]", "not a coefficients file of version 1"),
        (json.dumps({"version": 1, "classes": {}}), "malformed coefficients"),
    ],
)
def test_a_broken_coefficients_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(CoefficientsError, match=message) as caught:
        PerformanceModel.load(path)
    assert "broken.json" in str(caught.value)


def test_an_unknown_device_class_is_named() -> None:
    with pytest.raises(CoefficientsError, match="'asic'"):
        Coefficients(classes={}, devices={}).of("chip", "asic")
