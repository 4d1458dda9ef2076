"""Coefficients to JSON and back. Written whole or not at all; the packaged file is gzipped."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hw_profiles.performance.coefficients import (
    Coefficients,
    CoefficientsError,
    DeviceCoefficients,
    EngineFit,
    Grid,
    OperatorFit,
    Roofline,
    ShapedGrids,
    StartFit,
    StepFit,
)

PACKAGED = Path(__file__).resolve().parent.parent / "data" / "performance" / "coefficients.json.gz"
VERSION = 1


def read_coefficients(path: Path | None = None) -> Coefficients:
    """Read a coefficients file (None: the packaged one). Raises CoefficientsError."""
    source = path or PACKAGED
    try:
        raw = source.read_bytes()
        text = gzip.decompress(raw) if source.suffix == ".gz" else raw
        data = json.loads(text)
    except (OSError, EOFError, ValueError) as error:
        raise CoefficientsError(
            f"cannot read coefficients {source}: {error}; run `profiles calibrate`"
        ) from error
    if not isinstance(data, dict) or data.get("version") != VERSION:
        raise CoefficientsError(f"{source}: not a coefficients file of version {VERSION}")
    try:
        return Coefficients(
            classes={name: _device(value) for name, value in data["classes"].items()},
            devices={name: _device(value) for name, value in data["devices"].items()},
            provenance=data["provenance"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CoefficientsError(
            f"{source}: malformed coefficients: {type(error).__name__}: {error}"
        ) from error


def write_coefficients(coefficients: Coefficients, path: Path) -> None:
    """Write atomically and deterministically: equal coefficients give equal bytes."""
    data = {
        "version": VERSION,
        "provenance": coefficients.provenance,
        "classes": {name: _plain(value) for name, value in sorted(coefficients.classes.items())},
        "devices": {name: _plain(value) for name, value in sorted(coefficients.devices.items())},
    }
    text = json.dumps(_rounded(data), separators=(",", ":"), sort_keys=True).encode()
    raw = gzip.compress(text, mtime=0) if path.suffix == ".gz" else text
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(raw)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _plain(coefficients: DeviceCoefficients) -> dict[str, Any]:
    """As JSON holds it; `measured` only where something was."""
    data = asdict(coefficients)
    if not data["measured"]:
        del data["measured"]
    return data


def _rounded(value: Any) -> Any:
    """Five significant digits: more than any fit is good for."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def _device(data: dict[str, Any]) -> DeviceCoefficients:
    return DeviceCoefficients(
        operators={name: _operator(value) for name, value in data["operators"].items()},
        engine=EngineFit(**data["engine"]),
        start=StartFit(**data["start"]),
        busy_power=float(data["busy_power"]),
        idle_block_s=float(data["idle_block_s"]),
        measured={model: _steps(value) for model, value in data.get("measured", {}).items()},
    )


def _steps(data: dict[str, Any]) -> StepFit:
    return StepFit(**{**data, "sizes": tuple(data["sizes"]), "sizes_s": tuple(data["sizes_s"])})


def _operator(data: dict[str, Any]) -> OperatorFit:
    residual = data["residual"]
    return OperatorFit(
        roofline=Roofline(**data["roofline"]),
        residual=ShapedGrids(
            shapes=tuple(tuple(shape) for shape in residual["shapes"]),
            grids=tuple(_grid(grid) for grid in residual["grids"]),
        ),
        error=data["error"],
        rows=data["rows"],
        source=data["source"],
    )


def _grid(data: dict[str, Any]) -> Grid:
    return Grid(x=tuple(data["x"]), y=tuple(data["y"]), values=tuple(tuple(row) for row in data["values"]))
