"""The `autopoiesis` command: a group per layer, and the loop's own commands."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer
from rich.console import Console

from loop.commands import explain, loadtest, replay, serve
from loop.logs import configure_logging

app = typer.Typer(
    name="loop",
    help="The closed loop: perceive, decide, act, and rewrite the policy meanwhile.",
    no_args_is_help=True,
    add_completion=False,
)
app.command("replay")(replay.replay)
app.command("explain")(explain.explain)
app.command("loadtest")(loadtest.loadtest)
app.command("serve")(serve.serve)

root = typer.Typer(
    name="autopoiesis",
    help="A serving platform for AI models that rewrites itself while it serves.",
    no_args_is_help=True,
    add_completion=False,
)
root.add_typer(app, name="loop")
for _group, _module in (
    ("strategy", "strategy.cli"),
    ("execution", "execution.cli"),
    ("physical", "physical.cli"),
    ("profiles", "hw_profiles.cli"),
):
    root.add_typer(importlib.import_module(_module).app, name=_group)


@root.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    configure_logging()
    if version:
        from importlib.metadata import version as installed  # noqa: PLC0415 - only needed here

        print(f"autopoiesis {installed('autopoiesis')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


def main() -> None:
    """Run the whole command. Ctrl-C ends it with one line and exit code 130."""
    try:
        root()
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
