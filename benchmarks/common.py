"""The convention that all benchmarks share (DESIGN section 12): arguments, envelope, table.

A benchmark is `python -m benchmarks.NAME [DATA_DIR] [--quick] [--json] [--seed N]`:

    def main(argv: Sequence[str] | None = None) -> int:
        options = parse_options("twin_speed", __doc__, argv)
        rows, targets = measure(options)
        return publish(options, rows, targets)

    if __name__ == "__main__":
        sys.exit(main())

People get a table on stdout and progress on stderr; `--json` prints one object on stdout, nothing else.
Bad input is a `BenchmarkInputError`: `run_main` turns it into one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

Better = Literal["lower", "higher"]
Row = Mapping[str, Any]


class BenchmarkInputError(ValueError):
    """Bad input of a benchmark; the message names the thing and the way out."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a benchmark was asked for."""

    name: str
    data_dir: Path | None = None
    """Directory of measured data; None: not given."""
    quick: bool = False
    """A smaller run of the same code, in under a minute."""
    json: bool = False
    seed: int = 0
    extra: argparse.Namespace = field(default_factory=argparse.Namespace)
    """Options of this benchmark alone."""

    def require_data_dir(self) -> Path:
        """The data directory. Raises BenchmarkInputError when there is none."""
        if self.data_dir is None:
            raise BenchmarkInputError(
                f"{self.name}: needs a data directory: python -m benchmarks.{self.name} DATA_DIR, "
                "or set AUTOPOIESIS_DATA"
            )
        return self.data_dir


@dataclass(frozen=True, slots=True)
class Target:
    """A figure measured in this run, against what it should reach."""

    name: str
    value: float
    target: float
    better: Better
    unit: str = "1"

    @property
    def met(self) -> bool:
        """True when the value is at least as good as the target; a NaN never is."""
        return self.value <= self.target if self.better == "lower" else self.value >= self.target

    def as_json(self) -> dict[str, Any]:
        """The target as the envelope holds it."""
        return {
            "name": self.name,
            "value": _finite(self.value),
            "target": self.target,
            "better": self.better,
            "unit": self.unit,
            "met": self.met,
        }


def parse_options(
    name: str,
    doc: str | None,
    argv: Sequence[str] | None = None,
    *,
    extend: Callable[[argparse.ArgumentParser], None] | None = None,
) -> Options:
    """Parse `[DATA_DIR] [--quick] [--json] [--seed N]`; `extend` adds a benchmark's own options.

    DATA_DIR defaults to the environment variable AUTOPOIESIS_DATA. Raises BenchmarkInputError when the
    directory does not exist.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data_dir", nargs="?", help="directory of measured data (default: $AUTOPOIESIS_DATA)")
    parser.add_argument("--quick", action="store_true", help="a smaller run of the same code, under a minute")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout, nothing else")
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness (default: 0)")
    if extend is not None:
        extend(parser)
    known = parser.parse_args(argv)
    given = known.data_dir or os.environ.get("AUTOPOIESIS_DATA") or None
    data_dir = Path(given) if given else None
    if data_dir is not None and not data_dir.is_dir():
        raise BenchmarkInputError(f"{name}: no such data directory: {data_dir}")
    return Options(
        name=name, data_dir=data_dir, quick=known.quick, json=known.json, seed=known.seed, extra=known
    )


def run_main(main: Callable[[], int]) -> int:
    """Run a benchmark; bad input becomes one line on stderr and exit code 2."""
    try:
        return main()
    except BenchmarkInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def publish(options: Options, rows: Sequence[Row], targets: Sequence[Target]) -> int:
    """Print the outcome: one JSON object with `--json`, else tables. Returns the exit code 0: a missed
    target is a finding, not a failure."""
    if options.json:
        print(json.dumps(envelope(options, rows, targets), allow_nan=False))
        return 0
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200)
    for number, alike in enumerate(alike_rows(rows)):
        console.print(rows_table("" if number else options.name, alike))
    if targets:
        console.print(targets_table(targets))
    return 0


def envelope(options: Options, rows: Sequence[Row], targets: Sequence[Target]) -> dict[str, Any]:
    """The JSON object of DESIGN section 12."""
    return {
        "benchmark": options.name,
        "commit": commit(),
        "machine": machine(),
        "seed": options.seed,
        "quick": options.quick,
        "rows": [{key: _finite(value) for key, value in row.items()} for row in rows],
        "targets": [target.as_json() for target in targets],
    }


def commit() -> str:
    """Commit of the working tree, with `-dirty` when it has changes; `unknown` outside a repository."""
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],  # noqa: S607
            cwd=root,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "platform": platform.platform(),
        "processor": _cpu_model(),
        "cpus": os.cpu_count() or 0,
        "memory_gib": _memory_gib(),
        "python": platform.python_version(),
    }


def alike_rows(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that share most of their columns with the first one of their table, in order; a table each."""
    groups: list[list[Row]] = []
    for row in rows:
        for group in groups:
            first = group[0].keys()
            if 2 * len(first & row.keys()) > min(len(first), len(row)):
                group.append(row)
                break
        else:
            groups.append([row])
    return groups


def rows_table(title: str, rows: Sequence[Row]) -> Table:
    """The rows as a table; columns in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title)
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    return table


def targets_table(targets: Sequence[Target]) -> Table:
    """The targets as a table."""
    table = Table(title="targets")
    for column in ("name", "value", "target", "unit", "met"):
        table.add_column(column, justify="right" if column in {"value", "target"} else "left")
    for target in targets:
        sign = "<=" if target.better == "lower" else ">="
        met = "[green]yes[/]" if target.met else "[red]no[/]"
        table.add_row(target.name, _cell(target.value), f"{sign} {_cell(target.target)}", target.unit, met)
    return table


@contextmanager
def progress(options: Options, what: str) -> Iterator[None]:
    """Say on stderr what is being done and how long it took; silent with `--json`."""
    started_s = time.perf_counter()
    yield
    if not options.json:
        print(f"  {what}: {time.perf_counter() - started_s:.1f} s", file=sys.stderr, flush=True)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value == 0 or not math.isfinite(value):
            return str(value)
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _finite(value: Any) -> Any:
    """JSON has no NaN: what could not be measured is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
