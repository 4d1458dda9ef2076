"""Open a workload by the path of a trace, whatever its format, or by the name of a generator."""

from __future__ import annotations

import difflib
import math
from pathlib import Path

from execution.workload import generators, mixing, modulate, native
from execution.workload.errors import WorkloadError
from execution.workload.readers import azure, mooncake, servegen, vidur, vllm_log
from execution.workload.rows import json_object, lines
from loop.contracts import Workload

DEFAULT_MODEL = "llama-3.1-70b"
"""Asked for by traces that name no model, unless the caller says otherwise."""
FORMATS = ("native", "azure", "mooncake", "servegen", "vllm-log", "vidur")
_JSON_KEYS = {native.KEY: "native", "input_length": "mooncake", "input_toks": "vllm-log"}
_CSV_COLUMNS = {"ContextTokens": "azure", "num_prefill_tokens": "vidur"}
_READERS = {"azure": azure.read, "mooncake": mooncake.read, "vllm-log": vllm_log.read, "vidur": vidur.read}


def open_workload(
    path_or_name: str | Path,
    *,
    model: str | None = None,
    start_s: float | None = None,
    duration_s: float | None = None,
    rate_scale: float = 1.0,
    seed: int = 0,
) -> Workload:
    """Read a trace file or ServeGen directory, or generate by name (`azure-conv`, `generated:azure-conv`).

    `model` None keeps the models that the file names, or takes DEFAULT_MODEL. `start_s` and `duration_s` cut
    the trace, times counted from the cut; `rate_scale` multiplies the rate. `seed` is for whatever is random.

    Raises:
        WorkloadError: when there is no such file or generator, its format is unknown, it is malformed (with
            file and line), or the cut holds no requests.
    """
    path = Path(path_or_name)
    asked = model or DEFAULT_MODEL
    if not _exists(path):
        return generators.generate(
            _generator_name(str(path_or_name)),
            model=asked,
            seed=seed,
            start_s=start_s,
            duration_s=duration_s,
            rate_scale=rate_scale,
        )
    kind = sniff(path)
    if kind == "servegen":
        return servegen.read(
            path,
            model=asked,
            start_s=start_s or 0.0,
            duration_s=duration_s,
            rate_scale=rate_scale,
            seed=seed,
        )
    workload = native.read(path, model=model) if kind == "native" else _READERS[kind](path, model=asked)
    if start_s is not None or duration_s is not None:
        workload = _cut(workload, start_s or 0.0, duration_s)
    if rate_scale != 1.0:
        workload = modulate.scale(workload, rate_scale, seed=seed)
    return workload


def _cut(workload: Workload, start_s: float, duration_s: float | None) -> Workload:
    part = mixing.cut(workload, start_s, math.inf if duration_s is None else start_s + duration_s)
    if not part.requests:
        raise WorkloadError(
            f"{workload.source}: no requests in {duration_s or math.inf:g} s from {start_s:g} s; "
            f"the last one arrives at {workload.requests[-1].arrival_s:g} s"
        )
    return part


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _generator_name(name: str) -> str:
    known = generators.names()
    short = name.removeprefix("generated:")
    if short in known:
        return short
    close = difflib.get_close_matches(short, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise WorkloadError(f"{name[:200]!r} is neither a file nor a generator ({', '.join(known)}){hint}")


def sniff(path: Path) -> str:
    """The format of a trace, one of FORMATS. Raises WorkloadError when it is none of them."""
    if path.is_dir():
        if any(path.glob("chunk-*-trace.csv")):
            return "servegen"
        raise WorkloadError(f"{path}: is a directory without chunk-N-trace.csv: no ServeGen trace")
    line, text = next(lines(path), (0, ""))
    if not text:
        raise WorkloadError(f"{path}: is empty")
    if text.startswith("{"):
        known, found = _JSON_KEYS, json_object(path, line, text).keys()
    else:
        known, found = _CSV_COLUMNS, {name.strip().strip('"'): None for name in text.split(",")}.keys()
    for key, kind in known.items():
        if key in found:
            return kind
    raise WorkloadError.at(
        path,
        line,
        f"is no known trace: found {', '.join(map(str, list(found)[:6]))[:120]!r}; expected a CSV header with "
        f"{' or '.join(_CSV_COLUMNS)}, or JSON lines with {' or '.join(_JSON_KEYS)}",
    )
