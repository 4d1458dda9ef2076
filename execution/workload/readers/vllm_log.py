"""Per-request logs of vLLM benchmark runs: JSON lines with input_toks, output_toks and a time of arrival.

The time is `arrival_time_ns` (request streams) or `arrival_time` in seconds (logs of served requests, which
carry measured timestamps beside it; those are not read here).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from execution.workload.errors import WorkloadError
from execution.workload.rows import RequestRows, field, json_object, lines, number, tokens
from loop.contracts import Workload


def read(path: str | Path, *, model: str, name: str | None = None) -> Workload:
    """Read one log; every request asks for `model`.

    Raises:
        WorkloadError: with file and line, for anything that is not a well-formed row in order of time.
    """
    path = Path(path)
    rows = RequestRows(path)
    for line, text in lines(path):
        row = json_object(path, line, text)
        rows.add(
            line,
            _arrival_s(path, line, row),
            model,
            tokens(path, line, "input_toks", field(path, line, row, "input_toks")),
            tokens(path, line, "output_toks", field(path, line, row, "output_toks")),
        )
    return rows.workload(name or path.stem)


def _arrival_s(path: Path, line: int, row: dict[str, Any]) -> float:
    if "arrival_time_ns" in row:
        return number(path, line, "arrival_time_ns", row["arrival_time_ns"]) / 1e9
    if "arrival_time" in row:
        return number(path, line, "arrival_time", row["arrival_time"])
    raise WorkloadError.at(path, line, "has neither 'arrival_time_ns' nor 'arrival_time'")
