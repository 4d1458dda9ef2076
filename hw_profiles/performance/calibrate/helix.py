"""Reader of Helix's tables: `helix/model_manager/<model>/<device>/{prompt,decode}_bs2time.csv`.

Two columns without a header: tokens in the batch (prompts) or sequences (decode), and the milliseconds of
one transformer layer, rounded (to a tenth where small). The context behind the decode rows is not stated.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from hw_profiles.performance.calibrate import names
from hw_profiles.performance.calibrate.rows import DataDir, DataError
from hw_profiles.schema import DeviceProfile, ModelSpec

MS = 1e-3


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One row."""

    model: ModelSpec
    device: DeviceProfile
    tp: int
    phase: str
    batch: float
    """Prompt tokens, or decoding sequences."""
    time_s: float
    place: str


def read(data: DataDir, skipped: list[str]) -> list[LayerTime]:
    """All rows, in order; models and devices that are not carried go to `skipped`."""
    found: list[LayerTime] = []
    for path in data.glob("helix/model_manager/*/*/*_bs2time.csv"):
        model, device, _ = path.relative_to(data.root).parts[2:]
        name, _, count = device.partition("x")
        spec, profile = names.model(model), names.device(name)
        if spec is None or profile is None:
            missing = model if spec is None else name
            skipped.append(f"{path.relative_to(data.root)}: no profile of {missing}")
            continue
        tp = int(count) if count.isdigit() else 1
        phase = path.name.partition("_")[0]
        rows = list(_rows(data, path))
        found += [LayerTime(spec, profile, tp, phase, batch, ms * MS, place) for batch, ms, place in rows]
    return found


def _rows(data: DataDir, path: Path) -> list[tuple[float, float, str]]:
    reader = csv.reader(data.read_bytes(path).decode(errors="replace").splitlines())
    found = []
    for fields in reader:
        place = f"{path}:{reader.line_num}"
        if not fields:
            continue
        try:
            batch, time_ms = (float(value) for value in fields)
        except ValueError:
            raise DataError(f"{place}: expected two numbers, not {','.join(fields)!r}") from None
        if not (math.isfinite(batch) and math.isfinite(time_ms)) or batch < 0 or time_ms < 0:
            raise DataError(f"{place}: negative or not finite: {','.join(fields)!r}")
        if batch > 0:
            found.append((batch, time_ms, place))
    data.used[path.relative_to(data.root).as_posix()].rows = len(found)
    return found
