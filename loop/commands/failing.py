"""Bad input ends a command with one line that names the thing, and exit code 2; Ctrl-C with one, and 130."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import typer
from rich.console import Console

from execution.workload import WorkloadError
from hw_profiles import ProfileError
from hw_profiles.performance import InfeasibleError
from loop.compose.world import InfeasibleModelError
from loop.journal import JournalError
from strategy.live import LiveStoreError
from strategy.policy import PolicyModuleError


class InputError(ValueError):
    """What the user gave cannot be used; the message names it and the way out."""


_EXPECTED = (
    InputError,
    WorkloadError,
    ProfileError,
    InfeasibleError,
    InfeasibleModelError,
    JournalError,
    LiveStoreError,
    PolicyModuleError,
)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn expected errors into one line on stderr and exit code 2, Ctrl-C into one and exit code 130."""
    try:
        yield
    except _EXPECTED as error:
        text = " ".join(str(error).split())
        Console(stderr=True, soft_wrap=True).print(
            f"error: {text}", style="red", markup=False, highlight=False
        )
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted")
        raise typer.Exit(130) from None


def refuse_other_files(path: Path, what: str, tables: frozenset[str], lacks: str, option: str) -> None:
    """Let a SQLite file pass that has these tables; opening makes tables in what is none.

    Raises:
        InputError: it is not `what`, since it is no SQLite file, or has no `lacks`.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            found = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise InputError(f"{path}: not {what}: {error} ({option})") from error
    if not tables <= found:
        raise InputError(f"{path}: not {what}: it has no {lacks} ({option})")
