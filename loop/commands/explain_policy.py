"""`autopoiesis strategy explain`: what a policy does differently from a baseline, and where that pays."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated

import typer
from pydantic import TypeAdapter
from rich import box
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from loop.commands import code_differences as differences
from loop.commands import setting as s
from loop.commands.explain_verdict import Verdict, layout_words, replan_words, time_words, verdict
from loop.commands.failing import InputError
from loop.commands.folding import folded
from loop.commands.pairing import PairedWindow, Parts, by_dynamics, pair, parts
from loop.commands.policies import ArchiveFile, distinct, find_policy, one_line, open_archive
from loop.commands.score import ScoreReport, console, score_all
from loop.contracts import PolicySource
from loop.runner.report import policy_diff
from strategy.baselines import list_baselines

_SHOWN = 30


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `--json` prints."""

    policy: str
    digest: str
    against: str
    against_digest: str
    setting: dict[str, object]
    code: differences.CodeDifference
    windows: tuple[PairedWindow, ...]
    dynamics: tuple[tuple[str, int, float], ...]
    mine: Parts
    theirs: Parts
    replans: str
    layout: str
    verdict: Verdict
    diff: tuple[str, ...]


@folded
def explain(
    policy: Annotated[
        str, typer.Argument(metavar="POLICY", help="A file, a baseline, or (with --archive) a digest.")
    ],
    against: Annotated[
        str,
        typer.Option(metavar="BASELINE", help=f"One of {', '.join(list_baselines())}; or a file, a digest."),
    ] = "least_loaded",
    archive: ArchiveFile = None,
    *,
    where: s.SettingOptions,
    worlds: Annotated[int, typer.Option(min=0, max=50, help="Perturbed worlds beside the nominal one.")] = 3,
    workers: s.Workers = s.WORKERS,
    diff: Annotated[bool, typer.Option(help="Also show the difference of the sources.")] = True,
    json: s.AsJson = False,
) -> None:
    """Say what a policy does differently from a baseline, on which windows it wins or loses, and why."""
    with one_line():
        with nullcontext() if archive is None else open_archive(archive) as book:
            mine, theirs = distinct((find_policy(policy, book), find_policy(against, book)))
        if mine.digest == theirs.digest:
            raise InputError(
                f"{policy} and {against} are the same policy, to the letter (--against another one)"
            )
        setting = where.open()
        report = score_all(setting, setting.setup(0).hidden(setting.seed, worlds), (theirs, mine), workers)
    explanation = _explain(setting, report, mine, theirs)
    if json:
        sys.stdout.write(TypeAdapter(Explanation).dump_json(explanation).decode() + "\n")
    else:
        show(explanation, console(), diff=diff)


def _explain(
    setting: s.Setting, report: ScoreReport, mine: PolicySource, theirs: PolicySource
) -> Explanation:
    runs = {(x.digest, x.world): x.run for x in report.scores}
    ours, base = runs[mine.digest, 0], runs[theirs.digest, 0]
    windows = pair(ours, base, report.windows, setting.objective)
    worlds = [
        pair(runs[mine.digest, k], runs[theirs.digest, k], report.windows, setting.objective)
        for k in range(1, max(x.world for x in report.scores) + 1)
    ]
    return Explanation(
        policy=mine.name,
        digest=mine.digest,
        against=theirs.name,
        against_digest=theirs.digest,
        setting=setting.describe(),
        code=differences.code_difference(mine, theirs),
        windows=windows,
        dynamics=tuple(by_dynamics(windows)),
        mine=parts(ours),
        theirs=parts(base),
        replans=replan_words(mine.name, ours, theirs.name, base),
        layout=layout_words(mine.name, ours, theirs.name, base),
        verdict=verdict(mine.name, theirs.name, windows, worlds, ours, base, setting.objective),
        diff=tuple(policy_diff(theirs, mine)),
    )


def show(e: Explanation, out: Console, *, diff: bool) -> None:
    """The explanation, from the code to the verdict."""

    def say(line: str) -> None:
        out.print(line, highlight=False, soft_wrap=True, markup=False)

    def head(text: str) -> None:
        out.print(f"\n[bold]{text}[/bold]", highlight=False)

    head("What it does differently")
    for line in differences.in_words(e.code, e.policy, e.against):
        say(line)
    if diff and e.diff:
        out.print(Syntax("\n".join(e.diff), "diff", background_color="default"))
    head(f"Where it wins and loses ({e.setting['workload']} on {e.setting['cluster']}, nominal world)")
    out.print(_table(e))
    for word, count, ratio in e.dynamics:
        say(f"- {word}: {ratio:.3f} of {e.against} over {count} window{'s' if count > 1 else ''}")
    head("Where the time goes")
    for line in time_words(e.policy, e.mine, e.against, e.theirs):
        say(line)
    head("When it replans, and what to")
    say(e.replans)
    say(e.layout)
    head("Verdict")
    for line in e.verdict.words:
        say(line)


def _table(e: Explanation) -> Table:
    shown: Sequence[PairedWindow] = e.windows
    title = None
    if len(shown) > _SHOWN:
        ranked = sorted(shown, key=lambda w: w.ratio)
        shown = [*ranked[: _SHOWN // 2], *ranked[-_SHOWN // 2 :]]
        title = f"the {_SHOWN // 2} best and the {_SHOWN // 2} worst of {len(e.windows)} windows"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("window", justify="right")
    table.add_column("requests", justify="right")
    table.add_column("what marks it out")
    table.add_column(e.against, justify="right", no_wrap=True)
    table.add_column(e.policy, justify="right", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("replans")
    for w in shown:
        colour = "green" if w.ratio < 0.998 else "red" if w.ratio > 1.002 else "dim"
        who = [name for name, did in ((e.policy, w.replanned), (e.against, w.replanned_theirs)) if did]
        table.add_row(
            str(w.index),
            f"{w.requests:,}",
            ", ".join(w.dynamics),
            f"{w.theirs:,.1f}",
            f"{w.mine:,.1f}",
            f"[{colour}]{w.ratio:.3f}[/]",
            " and ".join(who),
        )
    return table
