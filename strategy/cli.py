"""`autopoiesis strategy`: the policies that there are, and checks of new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from loop.contracts import PolicyFault, PolicySource
from loop.lazy_commands import add_lazily
from loop.logs import configure_logging
from strategy.baselines import BaselineError, list_baselines, load_baseline
from strategy.policy import PolicyModuleError, digest_of, summary_of

app = typer.Typer(
    help="Serving policies: what to do, as living code.", no_args_is_help=True, add_completion=False
)


for _name, _place, _about in (
    (
        "evolve",
        "evolve:evolve",
        "Evolve a policy off line: on the windows of a workload, until a budget is spent.",
    ),
    (
        "score",
        "score:score",
        "Replay policies over a workload, each in a sandbox, and compare them with the first one.",
    ),
    (
        "explain",
        "explain_policy:explain",
        "Say what a policy does differently from a baseline, on which windows it wins or loses, and why.",
    ),
    ("archive", "archive:app", "Every candidate that ever was: its source, its scores, its end."),
    (
        "promote",
        "live:promote",
        "Let a policy serve from the next monitoring point on, without shadow and canary; it is watched.",
    ),
    (
        "rollback",
        "live:rollback",
        "Take the latest change back: end a canary, else let the champion's predecessor serve again.",
    ),
    ("pin", "live:pin", "Let nothing replace the policy that serves, until `unpin`."),
    ("unpin", "live:unpin", "Let evolution hand over policies again."),
    ("kill", "live:kill", "Let the safe baseline serve, and evolution rest, until `revive`."),
    ("revive", "live:revive", "Let evolution go on after `kill`, or after its error budget was spent."),
    (
        "status",
        "live:status",
        "Who serves, who is on its way, what the operator asked for, and what happened last.",
    ),
):
    add_lazily(app, _name, f"loop.commands.{_place}", about=_about)


@app.callback()
def strategy() -> None:
    """Serving policies: what to do, as living code."""
    configure_logging()  # to stderr: stdout is for results


def fail(message: str) -> typer.Exit:
    """Say what is wrong on stderr; the exit to raise."""
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(2)


@app.command("list")
def list_policies() -> None:
    """The baselines that come with the package."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("policy", style="bold", no_wrap=True)
    table.add_column("digest", style="dim", no_wrap=True)
    table.add_column("what it does")
    for name in list_baselines():
        policy = load_baseline(name)
        table.add_row(name, policy.digest, summary_of(policy.source))
    Console().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A baseline, or a policy file.")],
    plain: Annotated[
        bool, typer.Option("--plain", help="Without colours and line numbers, to copy.")
    ] = False,
) -> None:
    """The source of a policy: a copy of it is how one's own begins."""
    source = _source(name)
    if plain:
        typer.echo(source, nl=False)
    else:
        Console().print(Syntax(source, "python", line_numbers=True, background_color="default"))


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A policy: a Python file of four functions.")],
) -> None:
    """Whether a policy file can serve: the rules of its source, then questions asked in the sandbox.

    Exit code 0: it can; 2: it cannot, and each reason stands in one line.
    """
    from strategy.evolve.static import check_policy  # noqa: PLC0415  only this command needs the sandbox

    source = _read(file)
    violations = check_policy(source)
    if violations:
        raise fail("\n       ".join(f"{file}: {violation}" for violation in violations))
    problems = _smoke(file, source)
    if problems:
        raise fail("\n       ".join(f"{file}: {problem}" for problem in problems))
    typer.echo(f"{file}: {digest_of(source)} can serve")


def _smoke(file: Path, source: str) -> list[str]:
    """Problems of a policy's answers, asked in the sandbox."""
    from loop.guard import plan_problems  # noqa: PLC0415
    from strategy.evolve.sandbox import SandboxedPolicy  # noqa: PLC0415
    from strategy.smoke import smoke  # noqa: PLC0415

    console = Console(stderr=True)
    found = []
    try:
        with SandboxedPolicy(PolicySource(file.stem, source, digest_of(source))) as policy:
            for answer in smoke(policy, plan_problems):
                console.print(
                    f"[red]no[/]   {answer.question}"
                    if answer.problem
                    else f"[green]yes[/]  {answer.question}"
                )
                if answer.problem:
                    found.append(answer.problem)
    except PolicyFault as error:
        found.append(str(error))
    return found


def _source(name: str) -> str:
    if name.endswith(".py") or "/" in name:
        return _read(Path(name))
    try:
        return load_baseline(name).source
    except (BaselineError, PolicyModuleError) as error:
        raise fail(str(error)) from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise fail(f"cannot read policy {file}: {reason}") from error
