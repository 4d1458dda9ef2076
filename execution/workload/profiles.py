"""Fitted parameters of a generator: a small JSON file with its provenance, in `data/` of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from execution.workload.arrivals import Family
from execution.workload.errors import WorkloadError
from execution.workload.lengths import PROBABILITIES

FORMAT = 1
_SIZE = len(PROBABILITIES)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Arrivals(_Frozen):
    """A renewal process with a rate profile."""

    bin_s: float = Field(gt=0)
    rates_per_s: tuple[float, ...] = Field(min_length=1)
    """Mean rate in each bin; the profile repeats."""
    cv: float = Field(ge=0)
    """Of the gaps, once the profile is taken out."""
    family: Family = Family.GAMMA


class Sessions(_Frozen):
    """Conversations: how a request continues an earlier one. Arrivals then are those of first requests."""

    common_blocks: int = Field(ge=0)
    """Prefix blocks that all requests share (a system prompt)."""
    continues: tuple[float, ...] = Field(min_length=1)
    """Probability that turn k (from 1) is followed by another, where its prompt has a whole block beyond the
    common ones (no other turn is); the last one holds for all later turns."""
    keeps_all: tuple[float, ...] = Field(min_length=1)
    """Share of the next turns that extend the whole previous prompt, where that had [2^k, 2^(k+1)) blocks for
    k from 0; the last one holds for all longer prompts."""
    kept_share: tuple[float, ...] = Field(min_length=_SIZE, max_length=_SIZE)
    """Quantiles of the share of the previous prompt's blocks that the other turns keep."""
    think_s: tuple[float, ...] = Field(min_length=_SIZE, max_length=_SIZE)
    """Quantiles of the time between the arrivals of two turns."""
    added_tokens: tuple[float, ...] = Field(min_length=_SIZE, max_length=_SIZE)
    """Quantiles of the prompt tokens after the shared blocks, in turns that keep all."""
    branch_tokens: tuple[float, ...] = Field(min_length=_SIZE, max_length=_SIZE)
    """The same, in turns that keep a part."""
    output_tokens: tuple[float, ...] = Field(min_length=_SIZE, max_length=_SIZE)
    """Quantiles of the answers to later turns."""


class Stream(_Frozen):
    """One client, or the sum of all: arrivals and lengths."""

    name: str
    arrivals: Arrivals
    input_tokens: tuple[float, ...] = Field(min_length=_SIZE, max_length=_SIZE)
    """Quantiles at `lengths.PROBABILITIES`; with sessions, those of first requests."""
    output_tokens: tuple[float, ...] = Field(min_length=_SIZE, max_length=_SIZE)
    rank_correlation: float = Field(ge=-1, le=1)
    sessions: Sessions | None = None


class Fitted(_Frozen):
    """Everything that a generator needs, and what it was fitted to."""

    format: int
    generator: str
    provenance: Mapping[str, str]
    block_tokens: int = Field(gt=0)
    duration_s: float = Field(gt=0)
    """Default length of what is generated."""
    start_s: float = Field(default=0.0, ge=0)
    """Where in the rate profile it starts by default."""
    streams: tuple[Stream, ...] = Field(min_length=1)
    statistics: Mapping[str, float]
    """Of the data, over the default interval: what generated requests should show too."""


def names() -> list[str]:
    """Generators with packaged parameters."""
    folder = resources.files("execution.workload") / "data"
    return sorted(
        entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")
    )


@lru_cache(maxsize=32)
def packaged(name: str) -> Fitted:
    """The packaged parameters of a generator. Raises WorkloadError for an unknown name."""
    if name not in names():
        raise WorkloadError(f"no generator {name!r}; known: {', '.join(names())}")
    entry = resources.files("execution.workload") / "data" / f"{name}.json"
    return parse(entry.read_text(encoding="utf-8"), f"{name}.json")


def parse(text: str, where: str) -> Fitted:
    """Parameters from JSON text. Raises WorkloadError that names the file and the field."""
    try:
        fitted = Fitted.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise WorkloadError(f"{where}: {field}: {first['msg']}") from error
    if fitted.format != FORMAT:
        raise WorkloadError(f"{where}: format {fitted.format}: this version reads {FORMAT}")
    return fitted


def write(fitted: Fitted, folder: Path) -> Path:
    """Write `<generator>.json`; number lists stand on one line each."""
    path = folder / f"{fitted.generator}.json"
    text = _pretty(fitted.model_dump(mode="json", exclude_none=True)) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def _pretty(value: Any, depth: int = 0) -> str:
    pad = "  " * (depth + 1)
    if isinstance(value, Mapping):
        inner = [f"{pad}{json.dumps(key)}: {_pretty(item, depth + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inner) + "\n" + "  " * depth + "}"
    if isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[0], Mapping):
        return "[" + ", ".join(_pretty(item, depth) for item in value) + "]"
    return json.dumps(value)
