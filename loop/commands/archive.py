"""`autopoiesis strategy archive`: every candidate that ever was; list, show, compare, draw."""

from __future__ import annotations

import json as jsonlib
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from loop.commands import archive_words as words
from loop.commands.failing import InputError
from loop.commands.policies import find_candidate, one_line, open_archive
from loop.commands.score import write_text
from loop.compose.offline_record import last_record
from loop.contracts import Death
from loop.runner.lineage import read_lineage
from loop.runner.lineage_page import lineage_page
from loop.runner.lineage_picture import draw_lineage
from loop.runner.report import policy_diff
from strategy.evolve.archive import Archive, Candidate

app = typer.Typer(
    help="Every candidate that ever was: its source, its scores, its end.", no_args_is_help=True
)

STATUSES = ("promoted", "alive", "open", "dead")
ArchiveFile = Annotated[
    Path,
    typer.Option("--archive", metavar="FILE", help="Archive that `strategy evolve` or `loop replay` wrote."),
]
DEFAULT = Path("evolved/archive.sqlite")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]


class Sort(StrEnum):
    """Order of a listing."""

    BEST = "best"
    NEW = "new"


@app.command("ls")
def ls(
    archive: ArchiveFile = DEFAULT,
    status: Annotated[
        str | None,
        typer.Option(help=f"Only these: {', '.join(STATUSES)}, or a reason of death ({', '.join(Death)})."),
    ] = None,
    operator: Annotated[
        str | None, typer.Option(help="Only what this operator made: a name, or its beginning, e.g. edit.")
    ] = None,
    island: Annotated[int | None, typer.Option(min=0, help="Only what was born on this island.")] = None,
    sort: Annotated[Sort, typer.Option(help="best: least ratio first; new: latest first.")] = Sort.BEST,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 30,
    json: Json = False,
) -> None:
    """List candidates with their ratios and ends."""
    with one_line(), open_archive(archive) as book:
        known = {*STATUSES, *(str(d) for d in Death)}
        if status is not None and status not in known:
            raise InputError(
                f"{status}: no such status; there are {', '.join([*STATUSES, *Death])} (--status)"
            )
        order: Literal["best", "new"] = "best" if sort is Sort.BEST else "new"
        found = [
            c
            for c in book.candidates(None, order, status)
            if (operator is None or c.operator == operator or c.operator.startswith(f"{operator}:"))
            and (island is None or c.island == island)
        ]
        if json:
            rows = [asdict(c) for c in found[:limit]]
            _print_json({"archive": str(archive), "matching": len(found), "candidates": rows})
            return
        out = _console()
        if not found:
            out.print(f"none of {book.count()} candidates match", highlight=False)
            return
        out.print(_listing(found[:limit], out.width))
        shown = (
            f"{min(limit, len(found))} of {len(found)} that match" if len(found) > limit else f"{len(found)}"
        )
        out.print(f"{shown}; {words.summary(book)}", highlight=False, soft_wrap=True)


@app.command("show")
def show(
    digest: Annotated[str, typer.Argument(help="Of a candidate, or its first digits.")],
    archive: ArchiveFile = DEFAULT,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Also the whole prompt and answer of a language model.")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="The source alone, to copy.")] = False,
    json: Json = False,
) -> None:
    """Show a candidate: where it came from, its scores, its end, its source."""
    with one_line(), open_archive(archive) as book:
        policy = find_candidate(book, digest)
        if plain:
            typer.echo(policy.source, nl=False)
            return
        if json:
            _print_json(words.as_json(book, policy))
            return
        out = _console()
        for line in words.origin(book, policy):
            out.print(line, highlight=False, soft_wrap=True, markup=False)
        out.print(_scores(book, policy.digest))
        for line in words.exchanges(book, policy.digest, whole=prompts):
            out.print(line, highlight=False, soft_wrap=True, markup=False)
        out.print(Syntax(policy.source, "python", line_numbers=True, background_color="default"))


@app.command("diff")
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="Digest of a candidate, or its first digits.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    archive: ArchiveFile = DEFAULT,
    json: Json = False,
) -> None:
    """Compare two candidates: their source, and their scores where both have some."""
    with one_line(), open_archive(archive) as book:
        a, b = find_candidate(book, first), find_candidate(book, second)
        lines = policy_diff(a, b)
        pairs = words.paired(book, a.digest, b.digest)
        if json:
            rows = [
                {"stage": p.stage, "windows": p.task.windows, "world": p.task.world, **p.figures}
                for p in pairs
            ]
            _print_json({"first": a.digest, "second": b.digest, "diff": lines, "scores": rows})
            return
        out = _console()
        if lines:
            out.print(Syntax("\n".join(lines), "diff", background_color="default"))
        else:
            out.print("the same source")
        out.print(_side_by_side(a.name, b.name, pairs) if pairs else "no task on which both have a score")
        if pairs:
            out.print(words.behaviour(pairs), highlight=False, soft_wrap=True)


@app.command("lineage")
def lineage(
    digest: Annotated[
        str | None, typer.Argument(help="Of the candidate that the picture is about, or its first digits.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All candidates.")] = False,
    archive: ArchiveFile = DEFAULT,
    out: Annotated[
        Path | None, typer.Option(help="Write OUT.svg and OUT.html. Default: lineage beside the archive.")
    ] = None,
    json: Json = False,
) -> None:
    """Draw who came from whom: as a picture (SVG), and as a page to explore (HTML)."""
    with one_line(), open_archive(archive) as book:
        if (digest is None) != everything:
            raise InputError("name a digest, or give --all for all candidates")
        policy = find_candidate(book, digest) if digest is not None else None
        record = last_record(archive)
        tree = read_lineage(
            book,
            policy.digest if policy else "",
            first=record.first if record else "",
            champion="" if policy or record is None else record.champion,
        )
        title = f"Lineage of {policy.name}" if policy else f"Lineage of all policies in {archive.name}"
        base = (
            out.with_suffix("")
            if out is not None
            else archive.parent / (f"lineage-{policy.digest}" if policy else "lineage")
        )
        files = [base.with_name(base.name + ending) for ending in (".svg", ".html")]
        write_text(files[0], draw_lineage(tree, title), "--out")
        write_text(files[1], lineage_page(tree, title), "--out")
        if json:
            nodes = [{k: v for k, v in asdict(n).items() if k != "diff"} for n in tree.nodes]
            _print_json(
                {
                    "champion": tree.champion,
                    "reference": tree.reference,
                    "nodes": nodes,
                    "files": list(map(str, files)),
                }
            )
            return
        console = _console()
        console.print(
            f"{len(tree.nodes)} policies, {len(tree.path)} on the path to the champion", highlight=False
        )
        for path in files:
            console.print(str(path.resolve()), highlight=False, soft_wrap=True)


def _listing(found: Sequence[Candidate], width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rows = [
        (
            c.digest,
            c.name,
            "" if c.ratio is None else f"{c.ratio:.3f}{' stale' if c.stale else ''}",
            c.stage,
            c.operator,
            str(c.generation),
            "" if c.island is None else str(c.island),
            str(c.death) if c.status == "dead" and c.death else c.status,
        )
        for c in found
    ]
    names = ("digest", "name", "ratio", "stage", "operator", "step", "island", "status")
    taken = 0
    for i, name in enumerate(names):
        right = name in {"ratio", "step", "island"}
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
        taken += max(len(name), *(len(row[i]) for row in rows)) + 3
    table.add_column("what changed", no_wrap=True)
    style = {"promoted": "bold green", "dead": "dim"}
    for c, row in zip(found, rows, strict=True):
        what = words.short(c.note or c.detail, max(20, width - taken - 4))
        table.add_row(*map(escape, row), escape(what), style=style.get(c.status, ""))
    return table


def _scores(book: Archive, digest: str) -> Table | str:
    rows = book.evaluations(digest)
    if not rows:
        return "no scores"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="scores", title_justify="left")
    for name in ("stage", "windows"):
        table.add_column(name, no_wrap=True)
    for name in ("world", "step", "objective", "ratio", "TTFT p99 s", "goodput", "device-h", "replans"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for row in rows:
        score = row.evaluation.score
        figures = ["", "", "", "", "", ""]
        if score is not None:
            figures = [
                f"{score.objective:,.1f}",
                "" if row.ratio is None else f"{row.ratio:.3f}",
                f"{score.ttft_p99_s:,.1f}",
                f"{score.goodput:.1%}",
                f"{score.device_hours:,.2f}",
                f"{score.replan_rate:.0%}",
            ]
        end = f"{row.evaluation.death}: {row.evaluation.detail}" if row.evaluation.death else ""
        table.add_row(
            row.stage,
            words.ranges(row.task.windows),
            str(row.task.world),
            str(row.generation),
            *figures,
            escape(end or ("stale" if row.stale else "")),
        )
    return table


def _side_by_side(first: str, second: str, pairs: Sequence[words.Pair]) -> Table:
    table = Table(
        title=f"A {first}, B {second}, on the same windows of the same world",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("stage", "windows"):
        table.add_column(name, no_wrap=True)
    for name in (
        "world",
        "objective A",
        "B",
        "B / A",
        "TTFT p99 A",
        "B",
        "goodput A",
        "B",
        "device-h A",
        "B",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for p in pairs:
        a, b = p.first, p.second
        ratio = b.objective / a.objective if a.objective else 1.0
        table.add_row(
            p.stage,
            words.ranges(p.task.windows),
            str(p.task.world),
            f"{a.objective:,.1f}",
            f"{b.objective:,.1f}",
            f"[{'green' if ratio < 1 else 'red' if ratio > 1 else 'dim'}]{ratio:.3f}[/]",
            f"{a.ttft_p99_s:,.1f}",
            f"{b.ttft_p99_s:,.1f}",
            f"{a.goodput:.1%}",
            f"{b.goodput:.1%}",
            f"{a.device_hours:,.2f}",
            f"{b.device_hours:,.2f}",
        )
    return table


def _print_json(value: object) -> None:
    sys.stdout.write(jsonlib.dumps(value) + "\n")


def _console() -> Console:
    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if wide else 150)
