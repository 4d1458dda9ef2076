"""`autopoiesis execution`: the command group of this layer; each part brings its own commands."""

from __future__ import annotations

import typer

from execution.graph.cli import show
from execution.live.cli import app as live_app
from loop.lazy_commands import add_lazily

app = typer.Typer(
    no_args_is_help=True,
    help="How it is done: graphs, kernels, workloads and the twin.",
    add_completion=False,
)
app.command("show")(show)
app.registered_commands += live_app.registered_commands
app.registered_groups += live_app.registered_groups
add_lazily(app, "workload", "execution.workload.cli:app", about="Traces, generators and scenarios.")


@app.callback()
def _group() -> None:
    """How it is done: graphs, kernels, workloads and the twin."""
