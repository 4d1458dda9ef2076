"""The `autopoiesis` command: a group per layer, and the loop's own commands; each is imported when it is called."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from loop.lazy_commands import add_lazily

app = typer.Typer(
    name="loop",
    help="The closed loop: perceive, decide, act, and rewrite the policy meanwhile.",
    no_args_is_help=True,
    add_completion=False,
)
for _command, _about in (
    (
        "replay",
        "Replay a workload over a cluster with every baseline and with the system that rewrites its policy.",
    ),
    ("explain", "Say in words what was seen and decided at one tick of a journaled run."),
    (
        "loadtest",
        "Replay a workload in real time against a server, in an open loop, and report what came of it.",
    ),
    (
        "serve",
        "Serve models on this machine, or on a simulated cluster, with a policy that rewrites itself meanwhile.",
    ),
):
    add_lazily(app, _command, f"loop.commands.{_command}:{_command}", about=_about)

root = typer.Typer(
    name="autopoiesis",
    help="A serving platform for AI models that rewrites itself while it serves.",
    no_args_is_help=True,
    add_completion=False,
)
for _group, _module, _about in (
    ("loop", "loop.cli", "The closed loop: perceive, decide, act, and rewrite the policy meanwhile."),
    ("strategy", "strategy.cli", "Serving policies: what to do, as living code."),
    ("execution", "execution.cli", "How it is done: graphs, kernels, workloads and the twin."),
    ("physical", "physical.cli", "Devices: what there is, how it fares, what runs where."),
    ("profiles", "hw_profiles.cli", "What hardware exists, and how fast it is."),
):
    add_lazily(root, _group, f"{_module}:app", about=_about)


@root.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    from loop.logs import configure_logging  # noqa: PLC0415 - structlog, not needed for --help

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
