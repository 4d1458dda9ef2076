"""Reading measurement files: rows with their place, and samples that all fits share."""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


class DataError(ValueError):
    """A measurement file that cannot be used; the message has file and line."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured execution of one operator."""

    shape: tuple[float, ...]
    """Sizes that name the operator's shape; residuals are kept apart by it."""
    x: float
    """What the residual is resolved by within a shape, e.g. rows of a GEMM."""
    y: float
    """A second such size; 1.0 when there is none."""
    flops: float
    moved_bytes: float
    time_s: float


@dataclass(slots=True)
class SourceFile:
    """A file that was read, for the provenance."""

    path: str
    sha256: str
    rows: int = 0


@dataclass(slots=True)
class Row:
    """One record of a CSV file that knows where it stands."""

    values: Mapping[str, str | None]
    place: str

    def text(self, key: str) -> str:
        """A field as text. Raises DataError when it is absent."""
        value = self.values.get(key)
        if value is None:
            raise DataError(f"{self.place}: no column {key!r}")
        return value.strip()

    def number(self, key: str) -> float:
        """A finite field. Raises DataError."""
        text = self.text(key)
        try:
            value = float(text)
        except ValueError:
            raise DataError(f"{self.place}: {key} is not a number: {text!r}") from None
        if not math.isfinite(value):
            raise DataError(f"{self.place}: {key} is not finite: {text!r}")
        return value

    def positive(self, key: str) -> float:
        """A field above zero. Raises DataError."""
        value = self.number(key)
        if value <= 0:
            raise DataError(f"{self.place}: {key} must be positive, not {value:g}")
        return value

    def has(self, key: str) -> bool:
        """Whether the field is there and not empty."""
        return bool((self.values.get(key) or "").strip())


@dataclass(slots=True)
class DataDir:
    """A directory of measurements; remembers what was read from it."""

    root: Path
    used: dict[str, SourceFile] = field(default_factory=dict)

    def glob(self, pattern: str) -> list[Path]:
        """Files that match, in a fixed order."""
        return sorted(path for path in self.root.glob(pattern) if path.is_file())

    def read_bytes(self, path: Path) -> bytes:
        """Content of a file (unzipped when its name ends in .gz), noted for the provenance."""
        name = path.relative_to(self.root).as_posix()
        try:
            raw = path.read_bytes()
            content = gzip.decompress(raw) if path.suffix == ".gz" else raw
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        if name not in self.used:
            self.used[name] = SourceFile(name, hashlib.sha256(raw).hexdigest())
        return content

    def rows(self, path: Path) -> Iterator[Row]:
        """Records of a CSV file with a header. Raises DataError with file and line."""
        try:
            text = self.read_bytes(path).decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: is not UTF-8 text: {error}") from error
        reader = csv.DictReader(text.splitlines())
        count = 0
        for values in reader:
            place = f"{path}:{reader.line_num}"
            if None in values or None in values.values():
                raise DataError(f"{place}: has another number of fields than the header")
            count += 1
            yield Row(values, place)
        self.used[path.relative_to(self.root).as_posix()].rows = count
