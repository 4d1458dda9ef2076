"""Fitting what the engine adds to the kernels: from serving logs, and from tables of whole iterations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from hw_profiles.performance.calibrate.node import node_of
from hw_profiles.performance.calibrate.serving_logs import ServedRun
from hw_profiles.performance.calibrate.stepping import step_through
from hw_profiles.performance.coefficients import EngineFit
from hw_profiles.performance.model import PerformanceModel
from hw_profiles.performance.replica import ReplicaPerformance

Floats = NDArray[np.float64]
MAX_BASE_S = 0.02
FLOOR_QUANTILES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
FLOOR_FACTORS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.05, 1.1, 1.15)
LOWEST, HIGHEST = (0.7, 0.0, 0.0), (1.6, 0.5, 0.05)
"""Bounds of (kernel scale, base_s, per_sequence_s): kernels measured alone are never that far off."""
ROUNDS = 4


@dataclass(frozen=True, slots=True)
class IterationSample:
    """A measured whole iteration, against the kernels' share of it."""

    kernels_s: float
    sequences: int
    measured_s: float


def replica_of(performance: PerformanceModel, run: ServedRun) -> ReplicaPerformance:
    """The replica that a log was made on: devices of one node.

    Data parallel ranks of a mixture of experts step together and count as one replica; those of a dense
    model do not: the caller splits the requests. Raises InfeasibleError.
    """
    dp = run.dp if run.model.moe is not None else 1
    node = node_of(run.device, run.tp * run.pp * dp)
    return performance.replica(run.model, list(node.devices.values()), run.tp, run.pp, node, dp=dp)


def fit_serving(performance: PerformanceModel, runs: Sequence[ServedRun], start: EngineFit) -> EngineFit:
    """Base and first-token overhead from serving logs, all of one device kind and engine.

    The base solves median(log(simulated / measured TPOT)) = 0 by secant steps over all runs together; the
    first-token overhead is then the median of what is missing in TTFT of requests that did not queue.
    """
    fit = replace(start, base_s=start.base_s, first_token_s=0.0)
    tried: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        bias, _, _ = _biases(performance, runs, fit)
        tried.append((fit.base_s, bias))
        if abs(bias) < 1e-3:
            break
        fit = replace(fit, base_s=_next_base(tried, runs))
    best = min(tried, key=lambda pair: abs(pair[1]))[0]
    fit = replace(fit, base_s=best)
    _, missing_s, error = _biases(performance, runs, fit)
    return replace(
        fit,
        first_token_s=max(0.0, missing_s),
        error=error,
        rows=sum(len(run.requests) for run in runs),
        source=", ".join(sorted({f"{run.engine} ({run.name})" for run in runs})),
    )


def _next_base(tried: Sequence[tuple[float, float]], runs: Sequence[ServedRun]) -> float:
    base_s, bias = tried[-1]
    typical_s = float(np.median([r.tpot_s for run in runs for r in run.requests]))
    slope = 1.0 / typical_s
    if len(tried) > 1 and tried[-1][0] != tried[-2][0]:
        slope = (tried[-1][1] - tried[-2][1]) / (tried[-1][0] - tried[-2][0]) or slope
    return float(np.clip(base_s - bias / slope, 0.0, MAX_BASE_S))


def _biases(
    performance: PerformanceModel, runs: Sequence[ServedRun], engine: EngineFit
) -> tuple[float, float, float]:
    """(median log TPOT ratio, seconds missing in unqueued TTFT, median absolute error of E2E)."""
    ratios: list[float] = []
    missing: list[float] = []
    errors: list[float] = []
    world = performance.with_engine(engine)
    for run in runs:
        perf = replica_of(world, run)
        ranks = run.dp if run.model.moe is not None else 1
        shards = 1 if run.model.moe is not None else run.dp
        for shard in range(shards):
            served = run.requests[shard::shards]
            times = step_through(
                perf,
                [(r.queued_s, r.input_tokens, r.output_tokens) for r in served],
                max_num_seqs=run.max_num_seqs * ranks,
                max_num_batched_tokens=run.max_num_batched_tokens * ranks,
            )
            for request, (first_s, last_s) in zip(served, times, strict=True):
                errors.append(abs((last_s - request.queued_s) / request.e2e_s - 1.0))
                if request.output_tokens > 1:
                    tpot_s = (last_s - first_s) / (request.output_tokens - 1)
                    ratios.append(float(np.log(tpot_s / request.tpot_s)))
                ttft_s = first_s - request.queued_s
                if ttft_s < 0.5 and request.ttft_s < 0.5:
                    missing.append(request.ttft_s - ttft_s)
    return (
        float(np.median(ratios)) if ratios else 0.0,
        float(np.median(missing)) if missing else 0.0,
        float(np.median(errors)),
    )


def fit_iterations(samples: Sequence[IterationSample], *, source: str) -> EngineFit:
    """Fit measured = max(scale * kernels, floor) + base + per_sequence * n, in relative errors.

    Bounded least squares, re-weighted towards least absolute error, for each of some floors; the one with
    the least mean error stands. Raises ValueError with fewer than three samples.
    """
    if len(samples) < 3:
        raise ValueError(f"{source}: {len(samples)} iterations are too few to fit an engine")
    kernels = np.array([s.kernels_s for s in samples])
    counts = np.array([float(s.sequences) for s in samples])
    measured = np.array([s.measured_s for s in samples])

    def at(floor: float) -> tuple[float, float, EngineFit]:
        columns = np.stack([np.maximum(kernels, floor), np.ones_like(kernels), counts], axis=1)
        (scale, base_s, per_sequence_s), errors = _least_absolute(columns, measured)
        engine = EngineFit(
            base_s=base_s,
            per_sequence_s=per_sequence_s,
            floor_s=floor * scale,
            kernel_scale=scale,
            error=float(np.median(errors)),
            rows=len(samples),
            source=source,
        )
        return float(np.mean(errors)), floor, engine

    coarse = [at(floor) for floor in (0.0, *np.quantile(measured, FLOOR_QUANTILES).tolist())]
    best = min(coarse, key=lambda fit: fit[:2])
    fine = [at(best[1] * factor) for factor in FLOOR_FACTORS]
    return min([best, *fine], key=lambda fit: fit[:2])[2]


def fit_front_end(
    simulated_s: Sequence[float], prompt_tokens: Sequence[int], measured_s: Sequence[float]
) -> tuple[float, float]:
    """(a, b) of measured TTFT = simulated + a + b * prompt tokens, none negative, least relative error."""
    measured = np.array(measured_s)
    columns = np.stack(
        [np.array(simulated_s), np.ones(len(measured)), np.array(prompt_tokens, float)], axis=1
    )
    (_, constant_s, per_token_s), _ = _least_absolute(
        columns, measured, lowest=(0.999, 0.0, 0.0), highest=(1.001, 2.0, 1e-3)
    )
    return constant_s, per_token_s


def _least_absolute(
    columns: Floats,
    measured: Floats,
    *,
    lowest: tuple[float, float, float] = LOWEST,
    highest: tuple[float, float, float] = HIGHEST,
) -> tuple[tuple[float, float, float], Floats]:
    """Coefficients of three columns within their bounds, and the absolute relative errors."""
    weights = np.ones(len(measured))
    errors: Floats = weights
    solution: Floats = np.zeros(3)
    for _ in range(6):
        scaled = columns * (weights / measured)[:, None]
        solution = lsq_linear(scaled, weights, bounds=(lowest, highest)).x
        errors = np.abs(columns @ solution / measured - 1.0)
        weights = 1.0 / np.sqrt(np.maximum(errors, 0.02))
    return (float(solution[0]), float(solution[1]), float(solution[2])), errors
