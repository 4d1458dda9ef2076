"""Mooncake traces: JSON lines with timestamp (ms), input_length, output_length, hash_ids.

`hash_ids` has one entry per 512-token block of the prompt, equal ids for equal prefixes.
Source: Qin et al. 2025, "Mooncake", FAST; the data are Apache-2.0.
"""

from __future__ import annotations

from pathlib import Path

from execution.workload.rows import RequestRows, field, hashes, json_object, lines, number, tokens
from loop.contracts import Workload

BLOCK_TOKENS = 512


def read(path: str | Path, *, model: str, name: str | None = None) -> Workload:
    """Read one trace file; every request asks for `model`.

    Raises:
        WorkloadError: with file and line, for anything that is not a well-formed row in order of time.
    """
    path = Path(path)
    rows = RequestRows(path, block_tokens=BLOCK_TOKENS)
    for line, text in lines(path):
        row = json_object(path, line, text)
        rows.add(
            line,
            number(path, line, "timestamp", field(path, line, row, "timestamp")) / 1000.0,
            model,
            tokens(path, line, "input_length", field(path, line, row, "input_length")),
            tokens(path, line, "output_length", field(path, line, row, "output_length")),
            block_hashes=hashes(path, line, "hash_ids", row.get("hash_ids", [])),
        )
    return rows.workload(name or path.stem)
