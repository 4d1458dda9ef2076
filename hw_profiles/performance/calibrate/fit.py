"""Fitting one operator: a robust smooth roofline, then residual grids by shape."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from hw_profiles.performance.calibrate.rows import Sample
from hw_profiles.performance.coefficients import (
    SHARPNESS,
    Grid,
    OperatorFit,
    Roofline,
    ShapedGrids,
)

X_STEP = 0.25
Y_STEP = 0.5
"""Residual knots are this far apart in log2; rows that share a knot are averaged."""
FIT_ROWS = 4000
"""The roofline is fitted on at most so many rows, evenly picked."""

Floats = NDArray[np.float64]


def fit_operator(
    samples: Sequence[Sample],
    *,
    start: Roofline,
    peak_flops: float,
    bytes_per_s: float,
    source: str,
    max_shapes: int = 48,
    x_step: float = X_STEP,
    y_step: float = Y_STEP,
) -> OperatorFit:
    """Fit a roofline and residual grids. Deterministic. Raises ValueError without samples."""
    if not samples:
        raise ValueError(f"{source}: no rows to fit")
    roofline = fit_roofline(samples, start=start, peak_flops=peak_flops, bytes_per_s=bytes_per_s)
    by_shape: dict[tuple[float, ...], list[tuple[float, float, float]]] = defaultdict(list)
    for s in samples:
        expected_s = roofline.time_s(s.flops, s.moved_bytes, peak_flops, bytes_per_s)
        shape = tuple(round(math.log2(max(1.0, size)), 4) for size in s.shape)
        by_shape[shape].append(
            (math.log2(max(1.0, s.x)), math.log2(max(1.0, s.y)), math.log(s.time_s / expected_s))
        )
    shapes = spread_out(sorted(by_shape), max_shapes)
    residual = ShapedGrids(
        shapes=tuple(shapes), grids=tuple(grid_of(by_shape[shape], x_step, y_step) for shape in shapes)
    )
    errors = []
    for shape in sorted(by_shape):
        near = residual.nearest(shape)
        for x, y, value in by_shape[shape]:
            predicted = sum(weight * grid.at(x, y) for weight, grid in near)
            errors.append(abs(math.expm1(predicted - value)))
    return OperatorFit(
        roofline=roofline,
        residual=residual,
        error=float(np.median(errors)),
        rows=len(samples),
        source=source,
    )


def fit_roofline(
    samples: Sequence[Sample], *, start: Roofline, peak_flops: float, bytes_per_s: float
) -> Roofline:
    """Efficiencies and launch time by robust least squares on log time (soft L1)."""
    step = max(1, len(samples) // FIT_ROWS)
    picked = samples[::step]
    compute_s = np.array([s.flops for s in picked]) / peak_flops
    memory_s = np.array([s.moved_bytes for s in picked]) / bytes_per_s
    measured = np.log(np.array([s.time_s for s in picked]))

    def residuals(p: Floats) -> Floats:
        compute, memory, launch = np.exp(p)
        total = ((compute_s / compute) ** SHARPNESS + (memory_s / memory) ** SHARPNESS) ** (1 / SHARPNESS)
        return np.asarray(np.log(launch + total) - measured, dtype=np.float64)

    bounds = (np.log([0.005, 0.02, 1e-7]), np.log([1.05, 1.5, 2e-2]))
    first = np.clip(np.log([start.compute, start.memory, start.launch_s]), bounds[0] + 1e-6, bounds[1] - 1e-6)
    found = least_squares(residuals, first, bounds=bounds, loss="soft_l1", f_scale=0.1)
    compute, memory, launch = (float(v) for v in np.exp(found.x))
    return Roofline(compute=compute, memory=memory, launch_s=launch)


def spread_out(shapes: Sequence[tuple[float, ...]], count: int) -> list[tuple[float, ...]]:
    """At most `count` shapes that cover all: farthest-point order (Gonzalez, 1985), from the largest."""
    if len(shapes) <= count:
        return list(shapes)
    points = np.array(shapes)
    chosen = [int(np.argmax(points.sum(axis=1)))]
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < count:
        nxt = int(np.argmax(distance))
        chosen.append(nxt)
        distance = np.minimum(distance, np.linalg.norm(points - points[nxt], axis=1))
    return [shapes[i] for i in sorted(chosen)]


def grid_of(points: Iterable[tuple[float, float, float]], x_step: float, y_step: float) -> Grid:
    """A full grid from scattered (log2 x, log2 y, residual); holes take the nearest along y, then x."""
    cells: dict[tuple[float, float], list[float]] = defaultdict(list)
    for x, y, value in points:
        cells[(_snap(x, x_step), _snap(y, y_step))].append(value)
    xs = sorted({x for x, _ in cells})
    ys = sorted({y for _, y in cells})
    table: Floats = np.full((len(xs), len(ys)), np.nan)
    for (x, y), values in cells.items():
        table[xs.index(x), ys.index(y)] = float(np.median(values))
    for row in table:
        known = ~np.isnan(row)
        if known.any():
            row[:] = np.interp(ys, np.array(ys)[known], row[known])
    return Grid(
        x=tuple(xs),
        y=tuple(ys) if len(ys) > 1 else (0.0,),
        values=tuple(tuple(round(float(v), 4) for v in row) for row in table),
    )


def _snap(value: float, step: float) -> float:
    """Exact integers stay (powers of two are measured most); the rest goes to the nearest step."""
    return round(round(value / step) * step, 6)


def class_default(fits: Sequence[OperatorFit], fallback: OperatorFit) -> OperatorFit:
    """Roofline for devices of a class without tables: the median of the measured ones, no residual."""
    if not fits:
        return fallback
    return OperatorFit(
        roofline=Roofline(
            compute=float(np.median([f.roofline.compute for f in fits])),
            memory=float(np.median([f.roofline.memory for f in fits])),
            launch_s=float(np.median([f.roofline.launch_s for f in fits])),
        ),
        rows=sum(f.rows for f in fits),
        source=f"median of {len(fits)} measured device kinds",
    )
