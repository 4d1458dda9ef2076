"""Commands that are imported when they are called: `--help` lists them without what they need."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperCommand


def add_lazily(app: typer.Typer, name: str, place: str, *, about: str) -> None:
    """Add a command, or a group of commands, that is imported only when it is called.

    Args:
        app: where it is added.
        name: what it is called there.
        place: `package.module:attribute` of a function as typer takes it, or of a Typer.
        about: the line that `--help` of `app` shows: the first paragraph of the command's own help.
    """

    class Lazy(TyperCommand):
        def imported(self) -> Any:
            """The command itself."""
            return _imported(name, place)

        def make_context(self, *args: Any, **options: Any) -> Any:
            return self.imported().make_context(*args, **options)

    app.command(name, cls=Lazy, help=about)(_called_by_nobody)


def _called_by_nobody() -> None:
    """Takes the place of a function that is not imported yet: the context of a call is the real command's."""


def _imported(name: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    alone = typer.Typer(add_completion=False)
    alone.command(name)(found)
    return typer.main.get_command(alone)
