"""`autopoiesis execution workload`: look at traces and generators, export them, fit generators to data."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from execution.workload import fit as fitting
from execution.workload import generators, native, opening, profiles, scenarios, statistics
from execution.workload.errors import WorkloadError
from execution.workload.plots.sparkline import BLOCKS, sparkline
from execution.workload.plots.svg import svg
from loop.contracts import ClusterEvent, Workload

app = typer.Typer(no_args_is_help=True, help="Traces, generators and scenarios.", add_completion=False)

Source = Annotated[
    str, typer.Argument(metavar="PATH_OR_NAME", help="Trace file, ServeGen directory, generator or scenario.")
]
Model = Annotated[
    str | None, typer.Option(help="Model that the requests ask for, where the trace names none.")
]
Start = Annotated[float | None, typer.Option("--start", help="Cut from here, in seconds of the trace.")]
Duration = Annotated[float | None, typer.Option("--duration", help="Length of the cut, in seconds.")]
Rate = Annotated[float, typer.Option("--rate-scale", help="Multiply the arrival rate.")]
Seed = Annotated[int, typer.Option(min=0, help="For whatever is random.")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", envvar="AUTOPOIESIS_DATA", help="Trace files for scenarios; absent: generated ones."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Generators and scenarios, by name."""
    fitted = {name: profiles.packaged(name) for name in profiles.names()}
    plain = dict.fromkeys(generators.PLAIN, "2 requests/s, lognormal lengths")
    told = {name: (maker.__doc__ or "").split("\n", 1)[0] for name, maker in scenarios.SCENARIOS.items()}
    if as_json:
        rows = {name: dict(entry.provenance) for name, entry in fitted.items()}
        typer.echo(json.dumps({"generators": rows, "plain": plain, "scenarios": told}))
        return
    table = Table("generator", "requests/s", "prompt p50", "answer p50", "fitted to", box=None)
    for name, entry in fitted.items():
        figures = entry.statistics
        table.add_row(
            name,
            f"{figures['rate_per_s']:.3g}",
            f"{figures['input_p50']:.0f}",
            f"{figures['output_p50']:.0f}",
            entry.provenance["source"],
        )
    for name, what in plain.items():
        table.add_row(name, "2", "600", "150", what)
    console = _console()
    console.print(table)
    console.print()
    table = Table("scenario", "what happens", box=None)
    for name, what in told.items():
        table.add_row(name, what)
    console.print(table)


@app.command()
def show(
    source: Source,
    *,
    model: Model = None,
    start_s: Start = None,
    duration_s: Duration = None,
    rate_scale: Rate = 1.0,
    seed: Seed = 0,
    data: Data = None,
    as_json: AsJson = False,
    svg_path: Annotated[Path | None, typer.Option("--svg", help="Write a picture to this file.")] = None,
) -> None:
    """Statistics of a workload, and its rate over time."""
    with _refusing():
        workload, events = _open(
            source,
            model=model,
            start_s=start_s,
            duration_s=duration_s,
            rate_scale=rate_scale,
            seed=seed,
            data=data,
        )
        if svg_path is not None:
            _write(svg_path, svg(workload))
        numbers = statistics.describe(workload)
    rates = statistics.rate_series(workload, 60).tolist()
    if as_json:
        head = {"name": workload.name, "source": workload.source, "generated": workload.generated}
        typer.echo(
            json.dumps(
                {
                    **head,
                    "notes": dict(workload.notes),
                    **asdict(numbers),
                    "rates_per_s": rates,
                    "events": [asdict(event) for event in events],
                }
            )
        )
        return
    _tell(workload, numbers, rates, events)
    if svg_path is not None:
        typer.echo(f"picture    {svg_path}")


@app.command()
def export(
    source: Source,
    out: Annotated[Path, typer.Argument(help="File to write (JSON lines).")],
    *,
    model: Model = None,
    start_s: Start = None,
    duration_s: Duration = None,
    rate_scale: Rate = 1.0,
    seed: Seed = 0,
    data: Data = None,
) -> None:
    """Write a workload as JSON lines, which every command reads back equal (docs/workloads.md)."""
    with _refusing():
        workload, _ = _open(
            source,
            model=model,
            start_s=start_s,
            duration_s=duration_s,
            rate_scale=rate_scale,
            seed=seed,
            data=data,
        )
        native.write(workload, out)
    typer.echo(f"{len(workload.requests)} requests written to {out}")


@app.command()
def fit(
    data_dir: Annotated[Path, typer.Argument(help="Directory with azure/, mooncake/, servegen/.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the parameters (default: those of this package).")
    ] = None,
) -> None:
    """Fit the generators to trace files, and compare what they generate with the data."""
    folder = out or Path(str(resources.files("execution.workload"))) / "data"
    console = _console()
    with _refusing():
        if not data_dir.is_dir():
            raise WorkloadError(f"{data_dir}: is no directory")
        for fitted in fitting.fit_directory(data_dir):
            path = profiles.write(fitted, folder)
            made = fitting.statistics(generators.from_fitted(fitted, model="fit"))
            table = Table(
                "statistic", "data", "generated", title=f"{fitted.generator}  ({path.name})", box=None
            )
            for key, value in fitted.statistics.items():
                table.add_row(key, f"{value:,.4g}", f"{made[key]:,.4g}")
            console.print(table)
            console.print()


def _open(
    source: str,
    *,
    model: str | None,
    start_s: float | None,
    duration_s: float | None,
    rate_scale: float,
    seed: int,
    data: Path | None,
) -> tuple[Workload, tuple[ClusterEvent, ...]]:
    if data is not None and not data.is_dir():
        raise WorkloadError(f"{data}: no such folder (--data, or AUTOPOIESIS_DATA)")
    if source in scenarios.SCENARIOS and not Path(source).exists():
        if start_s is not None:
            raise WorkloadError(f"{source}: a scenario begins at its beginning; --start cuts traces")
        return scenarios.scenario(
            source,
            data,
            model=model or opening.DEFAULT_MODEL,
            other_model="other-model",
            seed=seed,
            duration_s=3500.0 if duration_s is None else duration_s,
            rate_scale=rate_scale,
            nodes=("node-0",),
            spot=("node-1",),
        )
    workload = opening.open_workload(
        source, model=model, start_s=start_s, duration_s=duration_s, rate_scale=rate_scale, seed=seed
    )
    return workload, ()


def _tell(
    workload: Workload,
    numbers: statistics.WorkloadStatistics,
    rates: list[float],
    events: tuple[ClusterEvent, ...],
) -> None:
    kind = "generated" if workload.generated else "trace"
    typer.echo(f"{workload.name}  ({kind}: {workload.source})")
    typer.echo(
        f"requests   {numbers.count:,} in {numbers.duration_s:,.1f} s: {numbers.rate_per_s:.4g}/s, "
        f"peak {numbers.peak_rate_per_s:.4g}/s, CV {numbers.cv:.3f}"
    )
    typer.echo(f"rate       {sparkline(rates, ascii_only=not _unicode())}")
    for name, side in (("prompt", numbers.input_tokens), ("answer", numbers.output_tokens)):
        typer.echo(
            f"{name}     tokens p50 {side.p50:,.0f}  p90 {side.p90:,.0f}  p99 {side.p99:,.0f}  "
            f"mean {side.mean:,.1f}  longest {side.longest:,}"
        )
    typer.echo(f"prefixes   {numbers.prefix_sharing:.1%} of the prompt blocks were seen before")
    typer.echo("models     " + ", ".join(f"{name} {count:,}" for name, count in numbers.models.items()))
    if len(numbers.tiers) > 1:
        typer.echo("tiers      " + ", ".join(f"{tier}: {count:,}" for tier, count in numbers.tiers.items()))
    for key, note in workload.notes.items():
        typer.echo(f"note       {key}: {note}")
    for event in events[:20]:
        typer.echo(f"event      {event.at_s:.1f} s {event.kind} {event.target}")
    if len(events) > 20:
        typer.echo(f"event      ... {len(events) - 20} more")


def _unicode() -> bool:
    """Can the terminal show block characters?"""
    try:
        BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _console() -> Console:
    """Wide enough for a table when the output is no terminal."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be written: {error.strerror}") from error


@contextmanager
def _refusing() -> Iterator[None]:
    """A WorkloadError becomes one line on stderr and exit code 2."""
    try:
        yield
    except WorkloadError as error:
        message = " ".join(str(error).split())
        typer.echo(f"error: {message}".encode("utf-8", "replace").decode(), err=True)
        raise typer.Exit(2) from error
