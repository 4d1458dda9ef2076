"""`profiles calibrate`: fit the performance model from a directory of measurements."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hw_profiles.errors import ProfileError
from hw_profiles.performance.calibrate.rows import DataError
from hw_profiles.performance.calibrate.run import calibrate as run_calibration
from hw_profiles.performance.coefficients import CoefficientsError
from hw_profiles.performance.files import PACKAGED, read_coefficients, write_coefficients

FILE_NAME = PACKAGED.name


def calibrate(
    data_dir: Annotated[
        Path | None, typer.Argument(help="Directory of measurements, one folder a source.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory for the coefficients (default: the packaged ones; with --from-journal, the journal's)."
        ),
    ] = None,
    date: Annotated[
        str | None, typer.Option(help="Date noted in the provenance, YYYY-MM-DD (default: today).")
    ] = None,
    from_journal: Annotated[
        Path | None,
        typer.Option(help="Fit the engines of a serving run instead, as its journal saw them at work."),
    ] = None,
    run: Annotated[
        int | None, typer.Option(help="With --from-journal: which run of it (default: the last one).")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="With --from-journal: coefficients to add to (default: the packaged ones)."),
    ] = None,
) -> None:
    """Fit operator times and engine overheads from measurements, and write them with their provenance.

    With --from-journal: what each step of this very engine costs, from the requests that `loop serve` served.
    """
    try:
        noted = dt.date.fromisoformat(date) if date else dt.datetime.now(tz=dt.UTC).date()
    except ValueError:
        _fail(f"--date: {date!r} is not of the form YYYY-MM-DD")
    if (data_dir is None) == (from_journal is None):
        _fail("give a directory of measurements, or --from-journal with a journal: one of the two")
    if (base is not None or run is not None) and from_journal is None:
        _fail("--base and --run: go with --from-journal only")
    if data_dir is not None and not data_dir.is_dir():
        _fail(f"no such directory: {data_dir}")
    home = PACKAGED.parent if from_journal is None else from_journal.parent
    target = _writable(out, home) / FILE_NAME
    try:
        if from_journal is not None:
            _calibrate_from_journal(from_journal, run, base, target, noted.isoformat())
            return
        assert data_dir is not None  # noqa: S101 - one of the two was given
        coefficients = run_calibration(
            data_dir, date=noted.isoformat(), say=lambda line: typer.echo(line, err=True)
        )
        write_coefficients(coefficients, target)
    except (DataError, ProfileError, CoefficientsError, OSError) as error:
        _fail(str(error))
    typer.echo(f"wrote {target}: {len(coefficients.devices)} device kinds")


def _calibrate_from_journal(
    journal: Path, run: int | None, base: Path | None, target: Path, date: str
) -> None:
    from hw_profiles.performance.calibrate.watched import calibrate_from_journal  # noqa: PLC0415 - scipy

    coefficients, found = calibrate_from_journal(journal, read_coefficients(base), date=date, run=run)
    write_coefficients(coefficients, target)
    for watched in found:
        fit, held_out = watched.fit, watched.held_out
        typer.echo(
            f"{fit.source}: {fit.rows} requests; a step of {fit.sizes[0]} takes {1e3 * fit.sizes_s[0]:.3g} ms, of "
            f"{fit.sizes[-1]} {1e3 * fit.sizes_s[-1]:.3g} ms, a prompt {1e3 * fit.per_prompt_s:.3g} ms and "
            f"{1e6 * fit.per_prompt_token_s:.3g} us a token, a token of context {1e6 * fit.per_kv_token_s:.3g} us; "
            f"start {fit.start_s:.3g} s"
        )
        typer.echo(
            f"held out: {held_out.requests} requests, median error {held_out.e2e:.1%} E2E and {held_out.ttft:.1%} "
            f"TTFT, of the mean E2E {held_out.e2e_of_mean:.1%}"
        )
    typer.echo(f"wrote {target}")


def _writable(out: Path | None, default: Path) -> Path:
    """The directory to write to; checked before the minutes of fitting, not after."""
    if out is not None and out.exists() and not out.is_dir():
        _fail(f"--out: {out} is not a directory")
    directory = out or default
    nearest = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    if not os.access(nearest, os.W_OK):
        _fail(f"--out: {nearest} cannot be written")
    return directory


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)
