"""Rows of a trace file, checked one by one: bounded lines, plain numbers, ascending times.

Every reader goes through here, so that whatever stands in a file becomes a Workload or a WorkloadError.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from execution.workload.errors import WorkloadError
from loop.contracts import Request, Workload

MAX_LINE_BYTES = 4 * 2**20
MAX_TOKENS = 10_000_000
"""Longest prompt or answer that is taken for real."""
MAX_SPAN_S = 3.2e8
"""Ten years: a timestamp further than that from the first one is a mistake."""
MAX_HASH_DIGITS = 40


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text without its line end) of a UTF-8 file; blank lines are left out.

    Raises:
        WorkloadError: when the file cannot be read, is not UTF-8, or has a line over 4 MiB.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(raw) > MAX_LINE_BYTES:
                    raise WorkloadError.at(path, number, f"line is longer than {MAX_LINE_BYTES} bytes")
                text = _decoded(path, number, raw)
                if text:
                    yield number, text
    except (OSError, ValueError) as error:
        if isinstance(error, WorkloadError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise WorkloadError(f"{path}: cannot be read: {reason}") from error


def _decoded(path: Path, number: int, raw: bytes) -> str:
    if number == 1:
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise WorkloadError.at(path, 1, "the file is UTF-16; save it as UTF-8")
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        text = raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise WorkloadError.at(
            path, number, f"byte 0x{byte:02x} at column {error.start + 1} is not UTF-8 text"
        ) from error
    if "\0" in text:
        raise WorkloadError.at(path, number, "holds NUL bytes: this is not a text file (or it is UTF-16)")
    return text


def header(path: Path, text: str, line: int, required: Sequence[str]) -> tuple[int, ...]:
    """Positions of the required columns in a CSV header. Raises WorkloadError naming those that lack."""
    names = [name.strip().strip('"') for name in text.split(",")]
    missing = [name for name in required if name not in names]
    if missing:
        raise WorkloadError.at(
            path,
            line,
            f"the header has no column {', '.join(missing)} (found {text[:120]!r})",
        )
    return tuple(names.index(name) for name in required)


def csv_fields(path: Path, line: int, text: str, wanted: int) -> list[str]:
    """Fields of an unquoted CSV row that must have `wanted` of them."""
    fields = text.split(",")
    if len(fields) != wanted:
        raise WorkloadError.at(path, line, f"has {len(fields)} fields, not {wanted}: {text[:80]!r}")
    return fields


def json_object(path: Path, line: int, text: str) -> dict[str, Any]:
    """One JSON object. Raises WorkloadError for truncated or other JSON."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise WorkloadError.at(path, line, f"is not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise WorkloadError.at(path, line, f"is not usable JSON: {error}") from error
    if not isinstance(value, dict):
        raise WorkloadError.at(path, line, f"is a JSON {type(value).__name__}, not an object")
    return value


def field(path: Path, line: int, row: Mapping[str, Any], name: str) -> object:
    """A field that must be there."""
    try:
        return row[name]
    except KeyError:
        raise WorkloadError.at(path, line, f"has no field {name!r}") from None


def number(path: Path, line: int, name: str, value: object) -> float:
    """A finite number, from JSON or CSV text."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            result = float(value)
        except (ValueError, OverflowError):
            result = math.nan
        if math.isfinite(result):
            return result
    raise WorkloadError.at(path, line, f"{name} is {_shown(value)}: must be a finite number")


def tokens(path: Path, line: int, name: str, value: object) -> int:
    """A token count: a whole number from 1 to MAX_TOKENS, as JSON integer or CSV text."""
    result = 0
    if type(value) is int:
        result = value
    elif isinstance(value, str) and len(value) <= 20 and value.isascii():
        digits = value.strip()
        if digits.isdigit():
            result = int(digits)
    if 1 <= result <= MAX_TOKENS:
        return result
    raise WorkloadError.at(
        path, line, f"{name} is {_shown(value)}: must be a whole number from 1 to {MAX_TOKENS}"
    )


def hashes(path: Path, line: int, name: str, value: object) -> tuple[int, ...]:
    """Block hashes: a list of non-negative integers."""
    if not isinstance(value, list):
        raise WorkloadError.at(path, line, f"{name} is {_shown(value)}: must be a list of integers")
    for item in value:
        if type(item) is not int or not 0 <= item < 10**MAX_HASH_DIGITS:
            raise WorkloadError.at(path, line, f"{name} holds {_shown(item)}: must be integers from 0")
    return tuple(value)


def _shown(value: object) -> str:
    """The offending value, short (also for integers too long to print)."""
    if type(value) is int and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class RequestRows:
    """Collects checked rows into a Workload; times are rebased, so that the first request arrives at 0."""

    def __init__(self, path: Path, *, block_tokens: int = 512, rebase: bool = True) -> None:
        self._path = path
        self._block_tokens = block_tokens
        self._rebase = rebase
        self._first_s: float | None = None if rebase else 0.0
        self._last_s = -math.inf
        self._last_line = 0
        self._requests: list[Request] = []

    def add(
        self,
        line: int,
        time_s: float,
        model: str,
        input_tokens: int,
        output_tokens: int,
        *,
        block_hashes: tuple[int, ...] = (),
        tier: int = 0,
    ) -> None:
        """Add one request. Raises WorkloadError when its time is out of order or out of this world."""
        if self._first_s is None:
            self._first_s = time_s
        arrival_s = time_s - self._first_s
        if arrival_s < self._last_s:
            raise WorkloadError.at(
                self._path,
                line,
                f"arrives {self._last_s - arrival_s:.6g} s before line {self._last_line}: "
                "requests must be in order of arrival; sort the file by time",
            )
        if not 0.0 <= arrival_s <= MAX_SPAN_S:
            raise WorkloadError.at(
                self._path, line, f"arrives {arrival_s:.6g} s after the start: more than ten years"
            )
        limit = -(-input_tokens // self._block_tokens)
        if len(block_hashes) > limit:
            raise WorkloadError.at(
                self._path,
                line,
                f"has {len(block_hashes)} block hashes; {input_tokens} tokens fill at most {limit} "
                f"blocks of {self._block_tokens}",
            )
        self._last_s, self._last_line = arrival_s, line
        self._requests.append(
            Request(len(self._requests), arrival_s, model, input_tokens, output_tokens, block_hashes, tier)
        )

    def workload(self, name: str, notes: Mapping[str, str] | None = None) -> Workload:
        """The finished workload. Raises WorkloadError when there is no request in it."""
        if not self._requests:
            raise WorkloadError(f"{self._path}: holds no requests")
        return Workload(
            name=name,
            requests=tuple(self._requests),
            source=str(self._path),
            block_tokens=self._block_tokens,
            notes=dict(notes or {}),
        )
