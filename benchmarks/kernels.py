"""Kernels from TVM templates against the best peer that is there, family by family and size by size.

Peers: torch eager in the forms that a user would write (for norms also the engine's own and torch's fused one, for
linear layers both layouts, large weights also in huge pages, for attention grouped and shared heads), torch.compile in its
default mode and with max-autotune (one thread), torch's int8pack in its best type. All take part in the same interleaved
rounds; a case's ratio is the median time of the best peer over that of the kernel. The recipe of a kernel is chosen in
rounds of their own before. `tiny` are shapes of the built-in models, `wide` those of Llama-class models; the family
`engine` is the serving engine's own modules of the built-in model, bucket by bucket, against eager.

Dense GEMM is judged as the arbiter would serve it: eager, unless the kernel was faster in the first rounds; the ratio
is that of the later ones. Errors are the greatest difference from float64, as a share of the greatest element; those of
the best peer stand beside. `limit` says what binds a case on this machine (measured here: reading memory of the case's
size, multiplying and adding, calling), `limit_us` the time that it allows; `gb_s`, `peer_gb_s` and `read_gb_s` are the
bytes that both move a second, and that can be read. Other load raises the times of two threads first: run it idle.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkInputError, Options, Target, parse_options, publish, run_main

TARGETS = {"rms_norm": 1.5, "elementwise": 1.5, "int8_linear": 1.2, "decode_attention": 1.1, "linear": 1.2}
SMALL_ROWS, SMALL_TARGET = 8, 2.0
MOST_ERROR = 1e-4
GROUPS = ("norms", "chains", "int8", "attention", "linear", "engine")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = parse_options("kernels", __doc__, argv, extend=_more_options)
    _check(options)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autopoiesis" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    import torch  # noqa: PLC0415

    torch.manual_seed(options.seed)
    torch._dynamo.config.cache_size_limit = 1024
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        if options.extra.tuned is not None:
            from benchmarks.kernelling import tuned  # noqa: PLC0415

            return publish(options, tuned.rows_of(options, options.extra.tuned, Path(scratch)), [])
        rows = list(_measured(options, Path(scratch)))
    return publish(options, rows, targets_of(rows))


def _more_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", help=f"groups of cases, with commas between: {', '.join(GROUPS)}")
    parser.add_argument(
        "--threads", type=int, choices=(1, 2), help="one number of threads (default: 1, then 2)"
    )
    parser.add_argument(
        "--tuned", type=Path, metavar="FOLDER",
        help="MetaSchedule at 32 and 64 trials against templates instead: tunes what the folder lacks (minutes)",
    )  # fmt: skip


def _check(options: Options) -> None:
    """Raises BenchmarkInputError: something is missing, or not known."""
    if importlib.util.find_spec("torch") is None:
        raise BenchmarkInputError("kernels: torch is not installed: pip install 'autopoiesis[torch]'")
    from execution.compiler.backends.tvm.backend import missing  # noqa: PLC0415

    lacking = missing()
    if lacking is not None:
        raise BenchmarkInputError(f"kernels: {lacking}")
    unknown = [name for name in _groups(options) if name not in GROUPS]
    if unknown:
        raise BenchmarkInputError(f"kernels: no group {unknown[0]!r}: there are {', '.join(GROUPS)}")
    folder = options.extra.tuned
    if folder is not None and folder.exists() and not folder.is_dir():
        raise BenchmarkInputError(f"kernels: {folder} is not a folder")


def _groups(options: Options) -> list[str]:
    return list(GROUPS) if options.extra.only is None else options.extra.only.split(",")


def _measured(options: Options, scratch: Path) -> Iterator[dict[str, Any]]:
    import torch  # noqa: PLC0415

    from benchmarks.kernelling import attention, chains, engine, int8, linear, norms, startup  # noqa: PLC0415
    from benchmarks.kernelling.measure import Bench  # noqa: PLC0415
    from benchmarks.kernelling.roofs import Roofs  # noqa: PLC0415

    modules = dict(zip(GROUPS, (norms, chains, int8, attention, linear, engine), strict=True))
    bench = Bench(options, scratch, Roofs(scratch))
    possible = (1, 2) if (os.cpu_count() or 1) > 1 else (1,)
    for threads in possible if options.extra.threads is None else (options.extra.threads,):
        torch.set_num_threads(threads)
        for group in _groups(options):
            for case in modules[group].cases(options, threads):
                row = bench.measure(case, threads)
                _say(options, row)
                yield row
    if options.extra.only is None:
        yield from startup.rows_of(scratch)


def targets_of(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """The issue's figures: geometric mean over cases, and the worst case."""
    found: list[Target] = []

    def add(name: str, chosen: Sequence[Mapping[str, Any]], least: float) -> None:
        ratios = [float(row["ratio"]) for row in chosen]
        if ratios:
            mean = math.exp(statistics.fmean(math.log(r) for r in ratios))
            found.append(Target(f"{name}/mean", mean, least, "higher", "x"))
            found.append(Target(f"{name}/worst", min(ratios), least, "higher", "x"))

    measured = [row for row in rows if "ratio" in row]
    for threads in (1, 2):
        these = [row for row in measured if row["threads"] == threads]
        for family, least in TARGETS.items():
            chosen = [row for row in these if row["family"] == family]
            if family == "int8_linear":
                chosen = [row for row in chosen if row["rows"] == 1]
            if family == "linear" and threads != 1:
                continue
            add(f"{family}/{threads} threads", chosen, least)
            if family in {"rms_norm", "elementwise"}:
                small = [row for row in chosen if row["rows"] <= SMALL_ROWS]
                add(f"{family}, small/{threads} threads", small, SMALL_TARGET)
        gemm = [float(row["ratio"]) for row in these if row["family"] == "gemm"]
        if gemm:
            found.append(Target(f"gemm/{threads} threads/worst as picked", min(gemm), 1.0, "higher", "x"))
    errors = [float(row["error"]) for row in measured if "error" in row]
    if errors:
        found.append(Target("error/worst", max(errors), MOST_ERROR, "lower"))
    return found


def _say(options: Options, row: Mapping[str, Any]) -> None:
    if not options.json:
        print(
            f"  {row['family']} {row['case']}, {row['rows']} rows, {row['threads']} threads: {row['ratio']:.2f}",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(run_main(main))
