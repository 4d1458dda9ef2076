"""Run every benchmark and rewrite docs/benchmarks.md from what was measured.

`--quick` passes on; the page then says so. `--only NAME ...` runs these, and leaves the others' sections as they are.
`--measured FILE ...` runs nothing: it takes what programs have printed with `--json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Options, Row, alike_rows, parse_options, run_main

BENCHMARKS = (
    "twin_fidelity",
    "twin_speed",
    "sandbox",
    "loop_first",
    "live_evolution",
    "dynamics",
    "engines",
    "gateway",
    "swap",
    "counterfactual",
    "kernels",
    "graphs",
    "engine_evolution",
    "compile",
    "telemetry",
    "cholesky",
    "helix",
    "dag",
    "hetero",
)
PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Run them one after the other; a failed one is named and leaves the page as it was."""
    options = parse_options("all", __doc__, argv, extend=_extend)
    outcomes = [json.loads(path.read_text(encoding="utf-8")) for path in options.extra.measured or ()]
    for name in () if outcomes else options.extra.only or BENCHMARKS:
        print(f"benchmarks.{name} ...", file=sys.stderr, flush=True)
        done = subprocess.run(command(name, options), stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
        if done.returncode:
            print(f"error: benchmarks.{name} ended with exit code {done.returncode}", file=sys.stderr)
            return 1
        outcomes.append(json.loads(done.stdout))
    part = PAGE.with_suffix(".part")
    some = options.extra.only or options.extra.measured
    kept = sections(PAGE.read_text(encoding="utf-8")) if PAGE.exists() and some else {}
    part.write_text(page(outcomes, kept), encoding="utf-8")
    part.replace(PAGE)
    print(f"wrote {PAGE.name}", file=sys.stderr)
    return 0


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="*", choices=BENCHMARKS, help="benchmarks to run (default: all)")
    parser.add_argument("--measured", nargs="*", type=Path, metavar="FILE", help="JSON of runs that are over")


def sections(text: str) -> dict[str, str]:
    """The page's sections by the name of their benchmark."""
    parts = text.split("\n## ")[1:]
    return {part.partition("\n")[0].strip(): "## " + part.rstrip("\n") for part in parts}


def command(name: str, options: Options) -> list[str]:
    """How one benchmark is called."""
    words = [sys.executable, "-m", f"benchmarks.{name}"]
    if options.data_dir is not None:
        words.append(str(options.data_dir))
    words += ["--json", "--seed", str(options.seed)]
    return [*words, "--quick"] if options.quick else words


def page(outcomes: Sequence[dict[str, Any]], kept: Mapping[str, str] | None = None) -> str:
    """The page in Markdown; `kept` are sections of an earlier page, for what was not run."""
    machine = ", ".join(f"{k} {v}" for k, v in outcomes[0]["machine"].items())
    lines = [
        "# Benchmarks",
        "",
        f"Written by `benchmarks.all` (`make bench`) from the JSON of each program, on: {machine}.",
        "Times are of a small shared machine; ratios are what counts. "
        "Each program prints its table, or one JSON object with `--json`.",
    ]
    fresh = {outcome["benchmark"]: section(outcome) for outcome in outcomes}
    found = {**(kept or {}), **fresh}
    for name in (*BENCHMARKS, *(n for n in found if n not in BENCHMARKS)):
        if name in found:
            lines += ["", found[name]]
    return "\n".join(lines) + "\n"


def section(outcome: dict[str, Any]) -> str:
    """One benchmark's part of the page."""
    quick = " --quick" if outcome["quick"] else ""
    lines = [
        f"## {outcome['benchmark']}",
        f"At commit {outcome['commit']}: `python -m benchmarks.{outcome['benchmark']} DATA_DIR{quick}`",
    ]
    targets = [
        {k: t[k] for k in ("name", "value", "target", "unit")} | {"met": "yes" if t["met"] else "no"}
        for t in outcome["targets"]
    ]
    tables: list[Sequence[Row]] = [targets, *alike_rows(outcome["rows"])]
    for rows in tables:
        lines += ["", *markdown_table(rows)]
    return "\n".join(lines)


def markdown_table(rows: Sequence[Row]) -> list[str]:
    """Rows of equal or unequal keys as a table."""
    if not rows:
        return []
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(c)) for c in columns) + " |" for row in rows]
    return lines


def cell(value: object) -> str:
    """A value as people read it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(run_main(main))
