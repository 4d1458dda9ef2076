"""Our own format: JSON lines that hold a Workload exactly (docs/workloads.md describes it).

Line 1 is a header object with `autopoiesis_workload` (the version, 1), name, source, generated, block_tokens,
notes; every further line is one request. Times are kept as they are, so a file reads back equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from execution.workload.errors import WorkloadError
from execution.workload.rows import RequestRows, field, hashes, json_object, lines, number, tokens
from loop.contracts import Request, Workload

VERSION = 1
KEY = "autopoiesis_workload"
_HEADER = {KEY, "name", "source", "generated", "block_tokens", "notes"}
_ROW = {"arrival_s", "model", "input_tokens", "output_tokens", "block_hashes", "tier"}


def dump_lines(workload: Workload) -> Iterable[str]:
    """The lines of a file, without line ends."""
    yield json.dumps(
        {
            KEY: VERSION,
            "name": workload.name,
            "source": workload.source,
            "generated": workload.generated,
            "block_tokens": workload.block_tokens,
            "notes": dict(workload.notes),
        }
    )
    for request in workload.requests:
        yield json.dumps(_row(request), separators=(",", ":"))


def _row(request: Request) -> dict[str, Any]:
    row: dict[str, Any] = {
        "arrival_s": request.arrival_s,
        "model": request.model,
        "input_tokens": request.input_tokens,
        "output_tokens": request.output_tokens,
    }
    if request.block_hashes:
        row["block_hashes"] = request.block_hashes
    if request.tier:
        row["tier"] = request.tier
    return row


def write(workload: Workload, path: str | Path) -> None:
    """Write a workload; request ids are not stored: they are the positions.

    Raises:
        WorkloadError: when the file cannot be written; nothing is left half-written.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in dump_lines(workload))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise WorkloadError(f"{path}: cannot be written: {error.strerror}") from error


def read(path: str | Path, *, model: str | None = None, name: str | None = None) -> Workload:
    """Read a workload written by `write`; `model` and `name`, where given, replace those in the file.

    Raises:
        WorkloadError: with file and line, for anything that `write` would not have written.
    """
    path = Path(path)
    source = iter(lines(path))
    first = next(source, None)
    if first is None:
        raise WorkloadError(f"{path}: is empty")
    head = _header(path, *first)
    rows = RequestRows(path, block_tokens=head["block_tokens"], rebase=False)
    for line, text in source:
        row = json_object(path, line, text)
        _refuse_unknown(path, line, row, _ROW)
        rows.add(
            line,
            number(path, line, "arrival_s", field(path, line, row, "arrival_s")),
            model or _text(path, line, "model", field(path, line, row, "model")),
            tokens(path, line, "input_tokens", field(path, line, row, "input_tokens")),
            tokens(path, line, "output_tokens", field(path, line, row, "output_tokens")),
            block_hashes=hashes(path, line, "block_hashes", row.get("block_hashes", [])),
            tier=_tier(path, line, row.get("tier", 0)),
        )
    read_back = rows.workload(name or head["name"], head["notes"])
    return Workload(
        name=read_back.name,
        requests=read_back.requests,
        source=head["source"],
        generated=head["generated"],
        block_tokens=head["block_tokens"],
        notes=read_back.notes,
    )


def _header(path: Path, line: int, text: str) -> dict[str, Any]:
    head = json_object(path, line, text)
    if head.get(KEY) != VERSION:
        raise WorkloadError.at(
            path, line, f"{KEY} is {head.get(KEY)!r:.40}: this reader knows version {VERSION}"
        )
    _refuse_unknown(path, line, head, _HEADER)
    for key in ("name", "source"):
        _text(path, line, key, field(path, line, head, key))
    if type(head.setdefault("generated", False)) is not bool:
        raise WorkloadError.at(path, line, f"generated is {head['generated']!r:.40}: must be true or false")
    tokens(path, line, "block_tokens", head.setdefault("block_tokens", 512))
    notes = head.setdefault("notes", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise WorkloadError.at(path, line, "notes must be an object of strings")
    return head


def _refuse_unknown(path: Path, line: int, row: dict[str, Any], known: set[str]) -> None:
    unknown = row.keys() - known
    if unknown:
        raise WorkloadError.at(
            path, line, f"unknown field {min(unknown)!r:.60}; known: {', '.join(sorted(known))}"
        )


def _text(path: Path, line: int, name: str, value: object) -> str:
    if isinstance(value, str) and value:
        return value
    raise WorkloadError.at(path, line, f"{name} is {value!r:.60}: must be a non-empty string")


def _tier(path: Path, line: int, value: object) -> int:
    if type(value) is int and 0 <= value <= 100:
        return value
    raise WorkloadError.at(path, line, f"tier is {value!r:.60}: must be a whole number from 0 to 100")
