"""Azure LLM inference traces (2023, and the 2024 files of the same columns).

Columns TIMESTAMP (UTC, up to 9 fractional digits), ContextTokens, GeneratedTokens.
Source: Patel et al. 2024, "Splitwise", ISCA; the data are CC-BY 4.0.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from execution.workload.errors import WorkloadError
from execution.workload.rows import RequestRows, csv_fields, header, lines, tokens
from loop.contracts import Workload

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d):(\d\d):(\d\d(?:\.\d{1,9})?)(?:Z|\+00:00)?", re.ASCII)


def read(path: str | Path, *, model: str, name: str | None = None) -> Workload:
    """Read one trace file; every request asks for `model`.

    Raises:
        WorkloadError: with file and line, for anything that is not a well-formed row in order of time.
    """
    path = Path(path)
    rows = RequestRows(path)
    columns: tuple[int, ...] | None = None
    width = 0
    for line, text in lines(path):
        if columns is None:
            columns, width = header(path, text, line, COLUMNS), text.count(",") + 1
            continue
        fields = csv_fields(path, line, text, width)
        time, context, generated = (fields[column] for column in columns)
        rows.add(
            line,
            _seconds(path, line, time.strip()),
            model,
            tokens(path, line, "ContextTokens", context),
            tokens(path, line, "GeneratedTokens", generated),
        )
    return rows.workload(name or path.stem)


def _seconds(path: Path, line: int, text: str) -> float:
    match = _TIME.fullmatch(text)
    if match is None:
        raise WorkloadError.at(
            path, line, f"TIMESTAMP is {text[:60]!r}: must look like 2023-11-16 18:15:46.6805900"
        )
    day, hour, minute, second = match.groups()
    try:
        return _day_s(day) + int(hour) * 3600 + int(minute) * 60 + float(second)
    except ValueError as error:
        raise WorkloadError.at(path, line, f"TIMESTAMP is {text[:60]!r}: {error}") from error


@lru_cache(maxsize=64)
def _day_s(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
