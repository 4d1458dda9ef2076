"""The whole calibration: read what is there, fit each device kind, derive what was not measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hw_profiles.loader import load_device
from hw_profiles.performance.calibrate import (
    aiconfigurator,
    helix,
    llmservingsim,
    names,
    serving_logs,
    splitwise,
)
from hw_profiles.performance.calibrate.engine import fit_serving
from hw_profiles.performance.calibrate.fit import class_default, fit_operator
from hw_profiles.performance.calibrate.rows import DataDir, DataError, Sample
from hw_profiles.performance.coefficients import (
    Coefficients,
    DeviceCoefficients,
    EngineFit,
    OperatorFit,
    Roofline,
    ShapedGrids,
)
from hw_profiles.performance.defaults import assumed
from hw_profiles.performance.model import PerformanceModel
from hw_profiles.performance.operators import peak_flops
from hw_profiles.schema import DeviceProfile

Say = Callable[[str], None]
NVLINK_BYTES_PER_S = {"h100-sxm": 450e9, "a100-sxm-80": 300e9}
"""Link that the collectives of these devices were measured on, one direction (NVIDIA datasheets)."""
TWINS = {"h200": "h100-sxm", "a100-sxm-40": "a100-sxm-80", "a800-sxm-80": "a100-sxm-80"}
"""The same chip with other memory or links: takes the other's coefficients."""
MAX_MEMORY_SHARE = 0.92
"""Share of peak bandwidth that the best measured kernels reach."""
PACKED_QUERIES = {"h100-sxm"}
"""Run FlashAttention 3, which packs the queries of one KV head into a block and splits the context."""
STEPS = {
    "attention_decode": (1.0, 1.0),
    "attention_mixed": (1.0, 1.0),
    "attention_prefill": (1.0, 1.0),
    "elementwise": (0.5, 1.0),
    "sampler": (0.5, 1.0),
}
"""Knot distances of residual grids in log2; 0.25 for matrix products."""
MAX_SHAPES = {"gemm": 40, "gemm-fp8": 40, "moe": 8, "moe-fp8": 8}


def calibrate(root: Path, *, date: str, say: Say) -> Coefficients:
    """Fit everything from a data directory. Raises DataError with file and line, or when nothing is there."""
    data = DataDir(root)
    skipped: list[str] = []
    samples: dict[str, dict[str, list[Sample]]] = defaultdict(dict)
    sources: dict[tuple[str, str], str] = {}
    idle_blocks: dict[str, float] = {}

    say("reading aiconfigurator kernel tables")
    for kind, operators in aiconfigurator.read(data, skipped).items():
        for operator, rows in operators.items():
            samples[kind][operator] = rows
            sources[(kind, operator)] = "aiconfigurator"
    say("reading LLMServingSim layer profiles")
    for kind, profile in llmservingsim.read(data, skipped).items():
        for operator, rows in profile.samples.items():
            samples[kind].setdefault(operator, []).extend(rows)
            sources[(kind, operator)] = "llmservingsim"
        if profile.idle_block_s:
            idle_blocks[kind] = max(0.0, float(np.median(profile.idle_block_s)))
    say("reading Helix layer tables")
    layers = helix.read(data, skipped)
    for kind, rows in helix_samples(layers).items():
        if "gemm" not in samples[kind]:
            samples[kind]["gemm"] = rows
            sources[(kind, "gemm")] = "helix"
    say("reading Splitwise runs")
    power = _busy_power(splitwise.read(data))
    say("reading serving logs")
    runs = serving_logs.read(data, skipped)
    if not data.used:
        raise DataError(f"{root}: no measurements found; see docs/performance-model.md for what is read")

    for line in skipped:
        say(f"skipped {line}")
    start = assumed()
    gpu = start.classes["gpu"]
    fitted = {kind: _fit_device(kind, ops, sources, gpu, say) for kind, ops in sorted(samples.items())}
    classes = dict(start.classes)
    classes["gpu"] = _class_of(list(fitted.values()), gpu, power)
    devices = {
        kind: replace(
            classes["gpu"],
            operators={**_defaults_for(kind, classes["gpu"]), **ops},
            idle_block_s=idle_blocks.get(kind, classes["gpu"].idle_block_s),
            busy_power=power.get(kind, classes["gpu"].busy_power),
        )
        for kind, ops in fitted.items()
    }
    provenance = _provenance(data, skipped, date)
    coefficients = Coefficients(classes=classes, devices=devices, provenance=provenance)
    devices, classes = _with_engines(coefficients, runs, say)
    for kind, like in TWINS.items():
        if like in devices and kind not in devices:
            devices[kind] = _transferred(devices[like], like)
    return Coefficients(classes=classes, devices=devices, provenance=provenance)


def _fit_device(
    kind: str,
    operators: Mapping[str, Sequence[Sample]],
    sources: Mapping[tuple[str, str], str],
    start: DeviceCoefficients,
    say: Say,
) -> dict[str, OperatorFit]:
    device = load_device(kind)
    fitted = {}
    for operator, rows in sorted(operators.items()):
        first = start.operators.get(operator) or start.operators[_plain(operator)]
        x_step, y_step = STEPS.get(operator, (0.25, 0.5))
        bandwidth = device.memory_bytes_per_s
        if operator == "all_reduce":
            bandwidth = NVLINK_BYTES_PER_S[kind]
        if sources[(kind, operator)] == "helix":
            fit = fit_whole_layers(rows, device, first)
        else:
            fit = fit_operator(
                rows,
                start=first.roofline,
                peak_flops=peak_flops(device, "fp8" if operator.endswith("-fp8") else "bf16"),
                bytes_per_s=bandwidth,
                source=sources[(kind, operator)],
                max_shapes=MAX_SHAPES.get(operator, 12),
                x_step=x_step,
                y_step=y_step,
            )
        fitted[operator] = fit
        roof = fit.roofline
        say(
            f"fitted {kind} {operator}: {fit.rows} rows, median error {100 * (fit.error or 0):.1f} %, "
            f"compute {roof.compute:.2f}, memory {roof.memory:.2f}, launch {1e6 * roof.launch_s:.1f} us, "
            f"{len(fit.residual.shapes)} shapes"
        )
    return fitted


def fit_whole_layers(samples: Sequence[Sample], device: DeviceProfile, start: OperatorFit) -> OperatorFit:
    """A roofline from times of whole layers: its launch time is the runtime's, so a GEMM's is put instead."""
    fit = fit_operator(
        samples,
        start=start.roofline,
        peak_flops=peak_flops(device, "bf16"),
        bytes_per_s=device.memory_bytes_per_s,
        source="helix",
    )
    memory = min(fit.roofline.memory, MAX_MEMORY_SHARE)
    roofline = Roofline(fit.roofline.compute, memory, start.roofline.launch_s)
    return replace(fit, roofline=roofline, residual=ShapedGrids())


def _with_engines(
    coefficients: Coefficients, runs: Sequence[serving_logs.ServedRun], say: Say
) -> tuple[dict[str, DeviceCoefficients], dict[str, DeviceCoefficients]]:
    """Engine overheads: of each device kind with serving logs; their median for all other GPUs."""
    performance = PerformanceModel(coefficients)
    devices, classes = dict(coefficients.devices), dict(coefficients.classes)
    by_kind: dict[str, list[serving_logs.ServedRun]] = defaultdict(list)
    for run in runs:
        by_kind[run.device.name].append(run)
    fits = {}
    for kind, group in sorted(by_kind.items()):
        fit = fit_serving(performance, group, classes["gpu"].engine)
        fits[kind] = fit
        say(
            f"fitted {kind} engine: {fit.rows} requests, median E2E error {100 * (fit.error or 0):.1f} %, "
            f"base {1e3 * fit.base_s:.2f} ms, first token {1e3 * fit.first_token_s:.1f} ms"
        )
    if fits:
        typical = EngineFit(
            base_s=float(np.median([fit.base_s for fit in fits.values()])),
            per_sequence_s=classes["gpu"].engine.per_sequence_s,
            first_token_s=float(np.median([fit.first_token_s for fit in fits.values()])),
            source=f"median of {', '.join(sorted(fits))}",
        )
        classes["gpu"] = replace(classes["gpu"], engine=typical)
        devices = {kind: replace(known, engine=fits.get(kind, typical)) for kind, known in devices.items()}
    return devices, classes


def _plain(operator: str) -> str:
    plain = operator.removesuffix("-fp8")
    return "attention_decode" if plain == "attention_mixed" else plain


def _class_of(
    fitted: Sequence[Mapping[str, OperatorFit]],
    start: DeviceCoefficients,
    power: Mapping[str, float],
) -> DeviceCoefficients:
    operators = {
        name: class_default([ops[name] for ops in fitted if name in ops], fallback)
        for name, fallback in start.operators.items()
    }
    # Collectives were measured on NVLink only: other devices are taken to be on PCIe.
    operators["all_reduce"] = start.operators["all_reduce"]
    ragged = [ops["attention_mixed"] for ops in fitted if "attention_mixed" in ops]
    if ragged:
        operators["attention_mixed"] = class_default(ragged, ragged[0])
    return replace(
        start,
        operators=operators,
        busy_power=float(np.median(list(power.values()))) if power else start.busy_power,
    )


def _defaults_for(kind: str, class_: DeviceCoefficients) -> dict[str, OperatorFit]:
    """Operators of the class; on Hopper the kernel for ragged batches serves single tokens at full speed."""
    dropped = {"attention_mixed"} if kind in PACKED_QUERIES else set()
    return {name: fit for name, fit in class_.operators.items() if name not in dropped}


def _transferred(device: DeviceCoefficients, like: str) -> DeviceCoefficients:
    return replace(
        device,
        operators={
            name: replace(fit, error=None, rows=0, source=f"transferred from {like}")
            for name, fit in device.operators.items()
        },
    )


def helix_samples(rows: Sequence[helix.LayerTime]) -> dict[str, list[Sample]]:
    """A layer's time as that of one GEMM over all of its weights, single devices only."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for row in rows:
        if row.tp != 1 or row.time_s <= 0:
            continue
        mlp = row.model.mlp_matrices * row.model.hidden_size * row.model.intermediate_size
        weights = float(row.model.attention_parameters + mlp)
        flops, moved = 2.0 * weights * row.batch, 2.0 * weights
        found[row.device.name].append(Sample((1.0,), row.batch, 1.0, flops, moved, row.time_s))
    return found


def _busy_power(runs: Sequence[splitwise.BatchRun]) -> dict[str, float]:
    """Mean of the measured average power, by device kind (runs under a power cap left out)."""
    found: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        device = names.device(run.hardware)
        if device is not None and run.power > 0:
            found[device.name].append(run.power)
    return {kind: round(float(np.mean(values)), 3) for kind, values in found.items()}


def _provenance(data: DataDir, skipped: Sequence[str], date: str) -> dict[str, Any]:
    return {
        "date": date,
        "sources": [
            {"path": used.path, "sha256": used.sha256, "rows": used.rows}
            for used in sorted(data.used.values(), key=lambda used: used.path)
        ],
        "skipped": sorted(skipped),
    }
