"""Fitted coefficients as values: a smooth roofline per operator, and measured corrections on top of it.

Time = roofline(FLOPs, bytes) * exp(residual). The roofline has three fitted numbers a device and operator
(share of peak FLOP/s, share of bandwidth, launch time); the residual is what measured tables add, kept on a
coarse grid in log2 coordinates. A device without tables uses the class's roofline and no residual, so that
what was learned on measured devices transfers by peak FLOP/s and bandwidth alone.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NEIGHBOURS = 4
"""How many measured shapes a new shape takes its residual from."""
SHARPNESS = 5.0
"""Exponent of the smooth maximum of compute time and memory time; larger is closer to a hard roofline."""


class CoefficientsError(ValueError):
    """A coefficients file that is missing or cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """Launch time plus the smooth maximum of compute and memory time."""

    compute: float
    """Share of peak FLOP/s that large operands reach."""
    memory: float
    """Share of peak bandwidth that large operands reach."""
    launch_s: float

    def time_s(self, flops: float, moved_bytes: float, peak_flops: float, bytes_per_s: float) -> float:
        """Seconds of an operator of `flops` that moves `moved_bytes`."""
        compute_s = flops / (peak_flops * self.compute)
        memory_s = moved_bytes / (bytes_per_s * self.memory)
        top_s = max(compute_s, memory_s)
        if top_s <= 0.0:
            return self.launch_s
        low = min(compute_s, memory_s) / top_s
        return self.launch_s + top_s * float((1.0 + low**SHARPNESS) ** (1.0 / SHARPNESS))


@dataclass(frozen=True, slots=True)
class Grid:
    """Values over one or two ascending axes in log2 coordinates; linear between knots, flat outside."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    """A single 0.0 when there is one axis only."""
    values: tuple[tuple[float, ...], ...]
    """values[i][j] at x[i], y[j]."""

    def at(self, x: float, y: float = 0.0) -> float:
        """Interpolated value at log2 coordinates x, y."""
        i, fx = _locate(self.x, x)
        j, fy = _locate(self.y, y)
        row = self.values[i]
        low = row[j] + (row[j + 1] - row[j]) * fy if fy else row[j]
        if not fx:
            return low
        row = self.values[i + 1]
        high = row[j] + (row[j + 1] - row[j]) * fy if fy else row[j]
        return low + (high - low) * fx


def _locate(knots: Sequence[float], at: float) -> tuple[int, float]:
    if at <= knots[0]:
        return 0, 0.0
    if at >= knots[-1]:
        return len(knots) - 1, 0.0
    i = bisect_right(knots, at) - 1
    return i, (at - knots[i]) / (knots[i + 1] - knots[i])


@dataclass(frozen=True, slots=True)
class ShapedGrids:
    """Measured residuals, one grid a shape; other shapes take the inverse-distance mean of the nearest."""

    shapes: tuple[tuple[float, ...], ...] = ()
    """log2 of the sizes that name a shape, e.g. (n, k) of a GEMM."""
    grids: tuple[Grid, ...] = ()

    def nearest(self, shape: Sequence[float]) -> tuple[tuple[float, Grid], ...]:
        """(weight, grid) pairs for `shape`, weights summing to 1; a measured shape is used alone."""
        distances = sorted(
            (math.dist(shape, known), index)
            for index, known in enumerate(self.shapes)
            if len(known) == len(shape)
        )
        if not distances:
            return ()
        if distances[0][0] < 0.01:
            return ((1.0, self.grids[distances[0][1]]),)
        chosen = distances[:NEIGHBOURS]
        weights = [1.0 / distance**2 for distance, _ in chosen]
        total = sum(weights)
        return tuple(
            (weight / total, self.grids[index]) for weight, (_, index) in zip(weights, chosen, strict=True)
        )


@dataclass(frozen=True, slots=True)
class OperatorFit:
    """What is known of one operator on one device kind."""

    roofline: Roofline
    residual: ShapedGrids = field(default_factory=ShapedGrids)
    error: float | None = None
    """Median absolute relative error of the fit on its own rows; None: not fitted here."""
    rows: int = 0
    source: str = "assumed"


@dataclass(frozen=True, slots=True)
class EngineFit:
    """What the serving engine adds to the kernels in each iteration."""

    base_s: float
    """Per iteration: scheduling, launches that the GPU waits for, output handling."""
    per_sequence_s: float
    """Per sequence in the batch: block tables, sampling, detokenising."""
    first_token_s: float = 0.0
    """Per request, outside the iterations: tokenising, queueing, sending the first token back."""
    floor_s: float = 0.0
    """Kernels shorter than this hide behind the CPU that launches them (eager engines; 0: graphs)."""
    kernel_scale: float = 1.0
    """Kernel times inside the engine against kernel times measured alone."""
    error: float | None = None
    rows: int = 0
    source: str = "assumed"


@dataclass(frozen=True, slots=True)
class StartFit:
    """From the order to the first request served."""

    process_s: float
    """Process start, imports, engine construction."""
    warm_up_s: float
    """Memory profiling, compilation from a warm cache, graph capture."""
    source: str = "assumed"


@dataclass(frozen=True, slots=True)
class StepFit:
    """Whole steps of one engine with one model on one device of a kind, measured while it served.

    A step costs `size_s(sequences) + per_prompt_s * prompts + per_prompt_token_s * prompt tokens +
    per_pair_s * (prompt token, earlier token) pairs + per_kv_token_s * tokens of context`.
    """

    sizes: tuple[int, ...]
    """Batch sizes in sequences, ascending, from 1."""
    sizes_s: tuple[float, ...]
    """What a step of that many sequences costs, contexts and prompts aside; linear between, and beyond as it is on
    average (the last piece stands on few steps)."""
    per_kv_token_s: float
    """Per token of context that the step attends to (`padded`: as many for each sequence as for the longest)."""
    per_prompt_s: float
    per_prompt_token_s: float
    per_pair_s: float
    first_token_s: float
    """Per request, outside the steps: from the front door to the queue, and back."""
    start_s: float
    """From the order to the first request served."""
    kv_capacity_tokens: int
    engine: str = ""
    contention: float = 0.0
    """Steps take this share longer for each other replica of the node that is busy at the same time."""
    padded: bool = False
    """All sequences that decode cost as much context as the longest among them: attention over a batch that is
    padded to its longest. Costs are then asked with sequences x longest context in place of the sum of contexts."""
    error: float | None = None
    """Median absolute relative error of E2E on requests held out of the fit."""
    rows: int = 0
    source: str = ""

    def size_s(self, sequences: int) -> float:
        """Cost of a step of so many sequences, contexts and prompts aside."""
        sizes, costs = self.sizes, self.sizes_s
        if len(sizes) == 1 or sequences <= sizes[0]:
            return costs[0]
        i = bisect_right(sizes, sequences)
        if i == len(sizes):
            slope = (costs[-1] - costs[0]) / (sizes[-1] - sizes[0])
            return costs[-1] + slope * (sequences - sizes[-1])
        slope = (costs[i] - costs[i - 1]) / (sizes[i] - sizes[i - 1])
        return costs[i - 1] + slope * (sequences - sizes[i - 1])


@dataclass(frozen=True, slots=True)
class DeviceCoefficients:
    """Operators and engine of one device kind, or the default of a device class."""

    operators: Mapping[str, OperatorFit]
    engine: EngineFit
    start: StartFit
    busy_power: float
    """Average power while serving, as a share of TDP."""
    idle_block_s: float = 0.0
    """Cost of an idle block of 128 query rows and one head, for a decoding sequence in a mixed batch."""
    measured: Mapping[str, StepFit] = field(default_factory=dict)
    """Model -> steps of an engine on a single such device, where it was watched at work; takes the place of
    operators and engine for replicas of one device."""


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Everything that calibration fits, for all device kinds."""

    classes: Mapping[str, DeviceCoefficients]
    devices: Mapping[str, DeviceCoefficients]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def of(self, kind: str, class_: str) -> DeviceCoefficients:
        """Coefficients of a device kind, else of its class. Raises CoefficientsError when neither is known."""
        found = self.devices.get(kind) or self.classes.get(class_)
        if found is None:
            raise CoefficientsError(
                f"no coefficients for device {kind!r} of class {class_!r}; classes: {sorted(self.classes)}"
            )
        return found
