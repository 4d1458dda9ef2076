"""`autopoiesis execution`: the command group of this layer; each part brings its own sub-group."""

from __future__ import annotations

import typer

from execution.workload.cli import app as workload_app

app = typer.Typer(no_args_is_help=True, help="How it is done: workloads and the twin.", add_completion=False)
app.add_typer(workload_app, name="workload")


@app.callback()
def _group() -> None:
    """How it is done: workloads and the twin."""
