"""Commands to a loop that runs: which policy serves, and what an operator wants instead.

Each command is left in the live store of the run's folder; the loop answers it at its next monitoring point.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from loop.commands.failing import InputError, one_line_errors
from loop.commands.inputs import read_policy
from loop.contracts import PolicySource
from loop.contracts.live import CommandKind, CommandStatus, LiveCommand, LiveRecord, LiveState
from strategy.evolve.archive import Archive, ArchiveError
from strategy.live import FILE_NAME, LiveStore, LiveStoreError

app = typer.Typer(
    help="Which policy serves in a running loop, and commands to it.",
    no_args_is_help=True,
    add_completion=False,
)

_ARCHIVE = "archive.sqlite"
_LOOK_S = 0.2

RunFolder = Annotated[
    Path, typer.Option("--run", metavar="DIR", help="The output folder of the run (its --out).")
]
Wait = Annotated[
    float, typer.Option("--wait", min=0.0, metavar="SECONDS", help="Wait so long for the loop's answer.")
]
ArchiveFile = Annotated[
    Path | None,
    typer.Option("--archive", metavar="FILE", help="Archive to find DIGEST in. Default: the run's own."),
]
PolicyFile = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="A policy file, instead of a digest.")
]
_RUN = Path("out")


@app.command()
def promote(
    digest: Annotated[
        str | None, typer.Argument(metavar="DIGEST", help="The policy, or the first digits of its digest.")
    ] = None,
    run: RunFolder = _RUN,
    archive: ArchiveFile = None,
    file: PolicyFile = None,
    wait: Wait = 0.0,
) -> None:
    """Let a policy serve from the next monitoring point on, without shadow and canary; it is watched."""
    with one_line_errors(), _OpenedStore(run) as store:
        _order(store, CommandKind.PROMOTE, _find(store, run, digest, archive, file), wait)


@app.command()
def rollback(run: RunFolder = _RUN, wait: Wait = 0.0) -> None:
    """Take the latest change back: end a canary, else let the champion's predecessor serve again."""
    with one_line_errors(), _OpenedStore(run) as store:
        _order(store, CommandKind.ROLLBACK, None, wait)


@app.command()
def pin(
    digest: Annotated[
        str | None,
        typer.Argument(metavar="[DIGEST]", help="Let this policy serve first. Default: the champion."),
    ] = None,
    run: RunFolder = _RUN,
    archive: ArchiveFile = None,
    file: PolicyFile = None,
    wait: Wait = 0.0,
) -> None:
    """Let nothing replace the policy that serves, until `unpin`."""
    with one_line_errors(), _OpenedStore(run) as store:
        named = digest is not None or file is not None
        policy = _find(store, run, digest, archive, file) if named else None
        _order(store, CommandKind.PIN, policy, wait)


@app.command()
def unpin(run: RunFolder = _RUN, wait: Wait = 0.0) -> None:
    """Let evolution hand over policies again."""
    with one_line_errors(), _OpenedStore(run) as store:
        _order(store, CommandKind.UNPIN, None, wait)


@app.command()
def kill(run: RunFolder = _RUN, wait: Wait = 0.0) -> None:
    """Let the safe baseline serve, and evolution rest, until `revive`."""
    with one_line_errors(), _OpenedStore(run) as store:
        _order(store, CommandKind.KILL, None, wait)


@app.command()
def revive(run: RunFolder = _RUN, wait: Wait = 0.0) -> None:
    """Let evolution go on after `kill`, or after its error budget was spent."""
    with one_line_errors(), _OpenedStore(run) as store:
        _order(store, CommandKind.REVIVE, None, wait)


@app.command()
def status(
    run: RunFolder = _RUN,
    events: Annotated[int, typer.Option(min=0, help="Show so many of the last events.")] = 8,
) -> None:
    """Who serves, who is on its way, what the operator asked for, and what happened last."""
    with one_line_errors(), _OpenedStore(run) as store:
        state, at_s = store.load(), store.committed_at_s()
        console = Console(soft_wrap=True, highlight=False)
        if state is None or at_s is None:
            console.print(f"{run}: no loop has served here yet")
        else:
            console.print(_state_table(state, at_s))
        commands = store.commands(events)
        if state is not None and not store.attended():
            console.print("the run is over: nobody is left to answer commands")
        if commands:
            console.print(_command_table(commands))
        happened = store.events(events)
        if happened:
            console.print(_event_table(happened))


class _OpenedStore(LiveStore):
    """The store of a run that is there. Errors are the user's: the wrong folder, the wrong file."""

    def __init__(self, run: Path) -> None:
        self.run = run
        path = run / FILE_NAME
        if not path.is_file():
            raise InputError(
                f"{path}: no such live store: `autopoiesis loop replay --out {run}` and `loop serve` keep one while "
                "they run (--run)"
            )
        try:
            super().__init__(path)
        except LiveStoreError as error:
            raise InputError(f"{error} (--run)") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if isinstance(error, LiveStoreError):
            raise InputError(f"{error} (--run)") from error


def _order(store: _OpenedStore, kind: CommandKind, policy: PolicySource | None, wait_s: float) -> None:
    """Queue a command; with a wait, say what became of it. Exit code 1: refused; 3: no answer yet.

    Raises:
        InputError: nobody serves there who could answer.
    """
    if not store.attended():
        at_s = store.committed_at_s()
        ended = "" if at_s is None else f", at the latest after {_clock(at_s)}"
        raise InputError(
            f"{store.run}: no loop serves here any more: the run is over{ended}. Commands are for a loop that runs, "
            f"e.g. `autopoiesis loop replay --out {store.run}`; `status` shows how this one ended (--run)"
        )
    number = store.order(kind, policy)
    answered = _answer(store, number, wait_s)
    if answered.status is CommandStatus.DONE:
        typer.echo(f"{kind}: done at tick {answered.tick}: {answered.answer}")
    elif answered.status is CommandStatus.REFUSED:
        typer.echo(f"{kind}: refused at tick {answered.tick}: {answered.answer}", err=True)
        raise typer.Exit(1)
    elif wait_s > 0:
        why = f"no answer within {wait_s:g} s" if store.attended() else "the run ended before it answered"
        typer.echo(f"{kind}: queued as command {number}; {why}", err=True)
        raise typer.Exit(3)
    else:
        typer.echo(f"{kind}: queued as command {number}, for the next monitoring point")


def _answer(store: LiveStore, number: int, wait_s: float) -> LiveCommand:
    until = time.monotonic() + wait_s
    command = store.command(number)
    while command.status is CommandStatus.PENDING and time.monotonic() < until and store.attended():
        time.sleep(_LOOK_S)
        command = store.command(number)
    return command


def _find(
    store: LiveStore, run: Path, digest: str | None, archive: Path | None, file: Path | None
) -> PolicySource:
    """The policy that the user means.

    Raises:
        InputError: none is named, or two are, or it is not to be found.
    """
    if (digest is None) == (file is None):
        raise InputError("name one policy: either DIGEST or --file policy.py")
    if file is not None:
        return read_policy(file)
    wanted = (digest or "").lower()
    known = store.policy(wanted) if archive is None else None
    if known is not None:
        return known
    path = archive or run / _ARCHIVE
    if not path.is_file():
        raise InputError(f"{path}: no such archive to find policy {digest} in (--archive, or --file)")
    try:
        with Archive(path) as found:
            return found.get(wanted)
    except ArchiveError as error:
        raise InputError(f"{error} (--archive)") from error


def _state_table(state: LiveState, at_s: float) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    stage = f", {state.stage}" if state.stage else ""
    table.add_row("champion", f"{state.champion.name} ({state.champion.digest}){stage}")
    if state.challenger is not None:
        table.add_row(
            "challenger", f"{state.challenger.name} ({state.challenger.digest}), {state.challenger_stage}"
        )
    if state.evidence:
        table.add_row("evidence", ", ".join(f"{k} {v:.4g}" for k, v in state.evidence.items()))
    before = ", ".join(f"{p.name} ({p.digest})" for p in reversed(state.predecessors[-3:]))
    table.add_row("before it", before or "none")
    table.add_row("pinned", "yes" if state.pinned else "no")
    flags = [text for text, holds in (("killed", state.killed), ("frozen", state.frozen)) if holds]
    table.add_row("evolution", f"rests: {', '.join(flags)} (`revive`)" if flags else "goes on")
    table.add_row("error budget", f"{state.budget_spent:.2f} spent")
    table.add_row("last tick", f"{state.tick}, {_clock(at_s)}")
    return table


def _command_table(commands: list[LiveCommand]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("command", "given", "status", "tick", "answer"):
        table.add_column(column)
    for c in commands:
        what = f"{c.kind} {c.policy.digest}" if c.policy else str(c.kind)
        table.add_row(what, _clock(c.given_at_s), c.status, "" if c.tick is None else str(c.tick), c.answer)
    return table


def _event_table(records: list[LiveRecord]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("tick", "policy", "stage", "what happened"):
        table.add_column(column)
    for r in records:
        stage = f"{r.before or '-'} -> {r.after}" if r.after else r.kind
        table.add_row(str(r.tick), r.policy, stage, r.reason)
    return table


def _clock(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
