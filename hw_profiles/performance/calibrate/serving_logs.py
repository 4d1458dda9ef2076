"""Reader of per-request serving logs: `llmservingsim/bench/<device>/<model>/{meta.json,requests.jsonl}`.

`meta.json` holds the engine's settings, `requests.jsonl` one object a request with its lengths and the
engine's own timestamps in seconds (`queued_ts`, `scheduled_ts`, `first_token_ts`, `last_token_ts`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw_profiles.performance.calibrate import names
from hw_profiles.performance.calibrate.rows import DataDir, DataError
from hw_profiles.schema import DeviceProfile, ModelSpec

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "fp8": "fp8", "auto": "bf16"}


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """One request; times in seconds from its entry into the engine's queue."""

    queued_s: float
    """On the log's own clock, 0 at the first request."""
    input_tokens: int
    output_tokens: int
    ttft_s: float
    e2e_s: float

    @property
    def tpot_s(self) -> float:
        """Mean time between tokens after the first."""
        return (self.e2e_s - self.ttft_s) / max(1, self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class ServedRun:
    """One run of one engine."""

    name: str
    device: DeviceProfile
    model: ModelSpec
    engine: str
    tp: int
    pp: int
    dp: int
    expert_parallel: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    requests: tuple[ServedRequest, ...]
    """In order of arrival."""


def read(data: DataDir, skipped: list[str]) -> list[ServedRun]:
    """All runs whose device and model are carried; the others go to `skipped`. Raises DataError."""
    runs = []
    for path in data.glob("llmservingsim/bench/*/*/meta.json"):
        place = path.parent.relative_to(data.root)
        meta = _object(data.read_bytes(path), str(path))
        device = names.device(place.parts[2])
        model = names.model(str(meta.get("model", place.parts[3])))
        if device is None or model is None:
            missing = place.parts[2] if device is None else meta.get("model")
            skipped.append(f"{place}: no profile of {missing}")
            continue
        if not path.with_name("requests.jsonl").is_file():
            skipped.append(f"{place}: no requests.jsonl")
            continue
        runs.append(_run(data, place.as_posix(), path, meta, (device, model)))
    return runs


def _run(
    data: DataDir,
    name: str,
    path: Path,
    meta: dict[str, Any],
    what: tuple[DeviceProfile, ModelSpec],
) -> ServedRun:
    log = path.with_name("requests.jsonl")
    kwargs = meta.get("engine_kwargs")
    if not isinstance(kwargs, dict):
        raise DataError(f"{path}: engine_kwargs is missing or not an object")

    def count(key: str, default: int) -> int:
        value = kwargs.get(key, default)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError(f"{path}: engine_kwargs.{key} must be a positive integer, not {value!r}")
        return value

    return ServedRun(
        name=name,
        device=what[0],
        model=_with_dtype(what[1], str(kwargs.get("dtype", "bfloat16")), path),
        engine=f"vllm {meta.get('vllm_version', 'unknown')}",
        tp=count("tensor_parallel_size", 1),
        pp=count("pipeline_parallel_size", 1),
        dp=count("data_parallel_size", 1),
        expert_parallel=bool(kwargs.get("enable_expert_parallel", False)),
        max_num_seqs=count("max_num_seqs", 256),
        max_num_batched_tokens=count("max_num_batched_tokens", 2048),
        requests=_requests(data, log),
    )


def _with_dtype(model: ModelSpec, dtype: str, path: Path) -> ModelSpec:
    known = DTYPES.get(dtype)
    if known is None:
        raise DataError(f"{path}: engine_kwargs.dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    return model.with_weights("fp8") if known == "fp8" else model


def _requests(data: DataDir, path: Path) -> tuple[ServedRequest, ...]:
    found = []
    lines = data.read_bytes(path).decode(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        record = _object(line, place)
        times = [_number(record, key, place) for key in ("queued_ts", "first_token_ts", "last_token_ts")]
        lengths = [_number(record, key, place) for key in ("input_toks", "output_toks")]
        if times != sorted(times):
            raise DataError(f"{place}: timestamps are not in order: queued, first token, last token")
        if min(lengths) < 1:
            raise DataError(f"{place}: input_toks and output_toks must be at least 1")
        found.append(
            ServedRequest(
                times[0], int(lengths[0]), int(lengths[1]), times[1] - times[0], times[2] - times[0]
            )
        )
    if not found:
        raise DataError(f"{path}: holds no requests")
    data.used[path.relative_to(data.root).as_posix()].rows = len(found)
    found.sort(key=lambda request: request.queued_s)
    start = found[0].queued_s
    return tuple(
        ServedRequest(r.queued_s - start, r.input_tokens, r.output_tokens, r.ttft_s, r.e2e_s) for r in found
    )


def _object(text: str | bytes, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{place}: not a JSON object")
    return value


def _number(record: dict[str, Any], key: str, place: str) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{place}: {key} is missing or not a number: {value!r}")
    return float(value)
