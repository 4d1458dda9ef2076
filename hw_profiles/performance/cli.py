"""`profiles calibrate`: fit the performance model from a directory of measurements."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hw_profiles.performance.calibrate.rows import DataError
from hw_profiles.performance.calibrate.run import calibrate as run_calibration
from hw_profiles.performance.files import PACKAGED, write_coefficients

FILE_NAME = PACKAGED.name


def calibrate(
    data_dir: Annotated[Path, typer.Argument(help="Directory of measurements, one folder a source.")],
    out: Annotated[
        Path | None, typer.Option(help="Directory for the coefficients (default: the packaged ones).")
    ] = None,
    date: Annotated[
        str | None, typer.Option(help="Date noted in the provenance, YYYY-MM-DD (default: today).")
    ] = None,
) -> None:
    """Fit operator times and engine overheads from measurements, and write them with their provenance."""
    target = (out or PACKAGED.parent) / FILE_NAME
    try:
        noted = dt.date.fromisoformat(date) if date else dt.datetime.now(tz=dt.UTC).date()
    except ValueError:
        _fail(f"--date: {date!r} is not of the form YYYY-MM-DD")
    if not data_dir.is_dir():
        _fail(f"no such directory: {data_dir}")
    if out is not None and out.exists() and not out.is_dir():
        _fail(f"--out: {out} is not a directory")
    nearest = next(p for p in (target.parent, *target.parent.absolute().parents) if p.exists())
    if not os.access(nearest, os.W_OK):  # before the minutes of fitting, not after
        _fail(f"--out: {nearest} cannot be written")
    try:
        coefficients = run_calibration(
            data_dir, date=noted.isoformat(), say=lambda line: typer.echo(line, err=True)
        )
        write_coefficients(coefficients, target)
    except (DataError, OSError) as error:
        _fail(str(error))
    typer.echo(f"wrote {target}: {len(coefficients.devices)} device kinds")


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)
