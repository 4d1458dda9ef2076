"""`autopoiesis loop loadtest`: a workload replayed in real time against any OpenAI-compatible URL."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from execution.workload import open_workload
from loop.commands.failing import InputError, one_line_errors
from loop.commands.score import write_text
from loop.contracts import Request, Slo, Workload
from loop.loadtest import Drive, LoadReport, Pacing, TargetError, find_out, render_page, summarise
from loop.loadtest.http1 import Client, Origin
from loop.loadtest.prompts import Prompts
from loop.loadtest.server import Endpoint, Server
from loop.loadtest.summary import Spread

_REPORT = TypeAdapter(LoadReport)
LINE_EVERY_S = 5.0
"""Of progress, where stderr is no terminal."""


class PromptKind(StrEnum):
    """What prompts are sent as."""

    AUTO = "auto"
    TOKENS = "tokens"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Ask:
    """What the command was asked for."""

    origin: Origin
    model: str | None
    token: str | None
    endpoint: Endpoint | None
    prompts: PromptKind
    workload: Workload
    pacing: Pacing
    slo: Slo


def loadtest(
    url: Annotated[str, typer.Argument(help="Any OpenAI-compatible server, e.g. http://127.0.0.1:8000.")],
    trace: Annotated[
        str,
        typer.Option(
            help="A trace file or folder (Azure, Mooncake, ServeGen, vLLM log, ...) or a generator "
            "(`execution workload list`)."
        ),
    ] = "poisson",
    duration_s: Annotated[float, typer.Option(min=0.1, help="Seconds of the trace to replay.")] = 60.0,
    start_s: Annotated[float | None, typer.Option(min=0.0, help="Where in the trace to begin.")] = None,
    rate_scale: Annotated[float, typer.Option(min=0.001, help="Multiply the trace's request rate.")] = 1.0,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Requests a second on average, instead of --rate-scale.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model to ask for (default: the server's first one).")
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="AUTOPOIESIS_TOKEN", help="Bearer token, if the server wants one.")
    ] = None,
    endpoint: Annotated[
        Endpoint | None, typer.Option(help="Where prompts go (default: completions, else chat).")
    ] = None,
    prompts: Annotated[
        PromptKind, typer.Option(help="tokens: token ids, exact lengths; text: words; auto: what it takes.")
    ] = PromptKind.AUTO,
    max_input_tokens: Annotated[int | None, typer.Option(min=1, help="Cut longer prompts.")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(min=1, help="Cut longer answers.")] = None,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Give up on an answer after so long.")] = 120.0,
    max_in_flight: Annotated[
        int, typer.Option(min=1, help="Requests beyond are not sent, and counted as failed.")
    ] = 4096,
    slo_ttft_s: Annotated[float, typer.Option(min=0.001, help="SLO: time to first token.")] = 10.0,
    slo_tpot_s: Annotated[float, typer.Option(min=0.001, help="SLO: time per output token.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of whatever the workload draws.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the report with its pictures here (HTML).")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
) -> None:
    """Replay a workload in real time against a server, in an open loop, and report what came of it.

    Ctrl-C ends it early, with a report of what was done.
    """
    with one_line_errors():
        if rate is not None and rate_scale != 1.0:
            raise InputError("--rate and --rate-scale: give one of them")
        if out is not None:
            _check_place(out)
        ask = Ask(
            origin=_origin(url),
            model=model,
            token=token,
            endpoint=endpoint,
            prompts=prompts,
            workload=_workload(
                trace, start_s=start_s, duration_s=duration_s, rate_scale=rate_scale, rate=rate, seed=seed
            ),
            pacing=Pacing(timeout_s, max_in_flight, max_input_tokens, max_output_tokens),
            slo=Slo(slo_ttft_s, slo_tpot_s),
        )
        try:
            report = asyncio.run(_run(ask))
        except TargetError as error:
            raise InputError(str(error)) from error
        if out is not None:
            write_text(out, render_page(report), "--out")
    if json:
        sys.stdout.write(_REPORT.dump_json(report).decode() + "\n")
    else:
        _show(report, Console(), out)
    if report.ended_by_hand:
        raise typer.Exit(130)
    if not report.answered:
        raise typer.Exit(1)


def _check_place(out: Path) -> None:
    """Whether the report can be written, found out before the test and not after it."""
    probe = out.with_name(out.name + ".part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror} (--out)") from error


def _origin(url: str) -> Origin:
    try:
        return Origin.of(url)
    except ValueError as error:
        raise InputError(str(error)) from error


def _workload(
    trace: str,
    *,
    start_s: float | None,
    duration_s: float,
    rate_scale: float,
    rate: float | None,
    seed: int,
) -> Workload:
    """The part of the trace that is to be replayed, at the wanted rate."""
    if rate is not None:
        plain = open_workload(trace, start_s=start_s, duration_s=duration_s, seed=seed)
        if not plain.requests:
            raise InputError(f"{trace}: no requests in {duration_s:g} s")
        rate_scale = rate * duration_s / len(plain.requests)
    workload = open_workload(trace, start_s=start_s, duration_s=duration_s, rate_scale=rate_scale, seed=seed)
    if not workload.requests:
        raise InputError(f"{trace}: no requests in {duration_s:g} s; a longer --duration-s, or a higher rate")
    return workload


async def _run(ask: Ask) -> LoadReport:
    client = Client(ask.origin, ask.token)
    try:
        server = await find_out(
            client,
            model=ask.model,
            endpoint=ask.endpoint,
            as_tokens=None if ask.prompts is PromptKind.AUTO else ask.prompts is PromptKind.TOKENS,
        )
        drive = _drive(client, server, ask)
        with _telling(server, ask.workload, drive) as (each_s, tell):
            await drive.run(each_s=each_s, tell=tell)
        return summarise(
            drive,
            server,
            ask.slo,
            workload=ask.workload.name,
            generated=ask.workload.generated,
            connections=client.opened,
        )
    finally:
        client.close()


def _drive(client: Client, server: Server, ask: Ask) -> Drive:
    prompts = Prompts(
        as_tokens=server.traits.as_tokens,
        block_tokens=ask.workload.block_tokens,
        salt=time.time_ns(),  # a server's cache shall not remember an earlier test
        tokens_per_word=server.traits.tokens_per_word,
    )
    requests: Sequence[Request] = ask.workload.requests
    return Drive(client, server, requests, prompts, ask.pacing)


@contextmanager
def _telling(server: Server, workload: Workload, drive: Drive) -> Iterator[tuple[float, _Tell]]:
    """Progress on stderr: a line that changes on a terminal, a line now and then elsewhere."""
    console = Console(stderr=True)
    console.print(
        f"{server.model} at {server.origin.text}: {drive.total:,} requests of {workload.name} over "
        f"{workload.requests[-1].arrival_s:,.0f} s, {server.traits.path}, "
        f"{'token ids' if server.traits.as_tokens else 'text'}",
        highlight=False,
        markup=False,
    )
    if console.is_terminal:
        with console.status("sending") as status:
            yield 0.25, _Tell(status, console)
    else:
        yield LINE_EVERY_S, _Tell(None, console)


class _Tell:
    """Says how far a drive is."""

    def __init__(self, status: Status | None, console: Console) -> None:
        self._status = status
        self._console = console

    def __call__(self, drive: Drive) -> None:
        failed = sum(1 for o in drive.outcomes if o.error)
        text = (
            f"{drive.elapsed_s:,.0f} s: {len(drive.outcomes) + drive.in_flight:,} of {drive.total:,} sent, "
            f"{len(drive.outcomes) - failed:,} answered, {failed:,} failed, {drive.in_flight:,} in flight"
        )
        if self._status is not None:
            self._status.update(text)
        else:
            self._console.print(text, highlight=False)


def _show(report: LoadReport, console: Console, out: Path | None) -> None:
    ended = ", ended by hand" if report.ended_by_hand else ""
    console.print(
        f"[bold]{escape(report.model)}[/bold] at {escape(report.url)}: {report.sent:,} of {report.planned:,} "
        f"requests sent in {report.elapsed_s:,.1f} s{ended}",
        highlight=False,
    )
    console.print(
        f"answered {report.answered:,} ({report.per_s(report.answered):,.1f}/s), failed {report.failed:,}; "
        f"output {report.per_s(report.output_tokens):,.0f} tokens/s, input "
        f"{report.per_s(report.input_tokens):,.0f} tokens/s",
        highlight=False,
    )
    console.print(
        f"goodput {report.goodput:.1%} ({report.per_s(report.good):,.1f}/s) within "
        f"{report.slo.ttft_s:g} s TTFT and {report.slo.tpot_s:g} s TPOT",
        highlight=False,
    )
    console.print(_table(report))
    for kind in report.errors:
        example = f": {escape(kind.example)}" if kind.example else ""
        console.print(f"[red]{escape(kind.kind)}[/red] {kind.count:,}{example}", highlight=False)
    for note in _notes(report):
        console.print(note, highlight=False)
    if out is not None:
        console.print(f"report: {out.resolve()}", soft_wrap=True, highlight=False)


def _table(report: LoadReport) -> Table:
    table = Table(title="milliseconds", title_justify="left", header_style="bold")
    for column in ("", "mean", "p50", "p90", "p95", "p99", "max"):
        table.add_column(column, justify="right" if column else "left")
    rows: list[tuple[str, Spread]] = [
        ("TTFT", report.ttft_s),
        ("TPOT", report.tpot_s),
        ("ITL", report.itl_s),
        ("E2E", report.e2e_s),
        ("sent later than due", report.client.send_lag_s),
    ]
    for name, s in rows:
        cells = (f"{1e3 * v:,.1f}" for v in (s.mean, s.p50, s.p90, s.p95, s.p99, s.max))
        table.add_row(name, *cells, style="dim" if name == rows[-1][0] else "")
    return table


def _notes(report: LoadReport) -> list[str]:
    client = report.client
    notes = [
        f"client: {client.cpu_share:.0%} of a core, clock late by {1e3 * client.loop_lag_s.p99:,.1f} ms at p99, "
        f"at most {client.most_in_flight:,} in flight on {client.connections:,} connections"
    ]
    if client.overloaded:
        notes.append("[yellow]the client was overloaded: its own delays are in these latencies[/yellow]")
    if report.clipped:
        notes.append(f"{report.clipped:,} requests were made shorter to fit the model or the limits")
    if report.short_answers:
        notes.append(f"{report.short_answers:,} answers were shorter than the workload wanted")
    if not report.counted_by_server:
        notes.append("the server counts no tokens: each piece of an answer stands for one")
    return notes
