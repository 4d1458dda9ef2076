"""Vidur's processed traces: CSV with arrived_at (s), num_prefill_tokens, num_decode_tokens.

Source: Agrawal et al. 2024, "Vidur", MLSys.
"""

from __future__ import annotations

from pathlib import Path

from execution.workload.rows import RequestRows, csv_fields, header, lines, number, tokens
from loop.contracts import Workload

COLUMNS = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")


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
        arrived, prefill, decode = (fields[column] for column in columns)
        rows.add(
            line,
            number(path, line, "arrived_at", arrived),
            model,
            tokens(path, line, "num_prefill_tokens", prefill),
            tokens(path, line, "num_decode_tokens", decode),
        )
    return rows.workload(name or path.stem)
