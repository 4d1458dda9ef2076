"""`autopoiesis strategy score`: policies side by side on the windows of a workload, in several worlds."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from execution.workload.plots.sparkline import sparkline
from loop.commands import setting as s
from loop.commands.failing import InputError
from loop.commands.folding import folded
from loop.commands.policies import ArchiveFile, find_policies, one_line, open_archive
from loop.compose.experiment import window_info
from loop.compose.objective import Objective, window_value
from loop.compose.offline import OfflineSetup, Run, SideBySide
from loop.contracts import PolicySource, ReplayMode, RunResult
from loop.runner.results import WindowInfo
from loop.runner.window_picture import Series, draw_windows


@dataclass(frozen=True, slots=True)
class Scored:
    """A policy in one world."""

    policy: str
    digest: str
    world: int
    """0: the nominal one."""
    objective: float
    ratio: float
    """Of the objective to the first policy's in the same world; below 1 is better."""
    run: RunResult
    same_as: str = ""
    """The policy before it that is the same to the letter, and was replayed in its stead."""


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """What `--json` prints."""

    setting: dict[str, object]
    windows: tuple[WindowInfo, ...]
    scores: tuple[Scored, ...]


@folded
def score(
    policies: Annotated[
        list[str],
        typer.Argument(metavar="POLICY...", help="Baselines, files, or (with --archive) digests."),
    ],
    baseline: Annotated[
        list[str] | None, typer.Option(help="Also this baseline; may be given several times, or `all`.")
    ] = None,
    archive: ArchiveFile = None,
    *,
    where: s.SettingOptions,
    worlds: Annotated[
        int, typer.Option(min=0, max=50, help="Perturbed worlds: other hardware, requests drawn anew.")
    ] = 2,
    workers: s.Workers = s.WORKERS,
    svg: Annotated[Path | None, typer.Option(help="Write a picture, window by window, to this file.")] = None,
    json: s.AsJson = False,
) -> None:
    """Replay policies over a workload, each in a sandbox, and compare them with the first one."""
    with one_line():
        names = [*policies, *_baselines(baseline)]
        with nullcontext() if archive is None else open_archive(archive) as book:
            chosen = find_policies(names, book)
        setting = where.open()
        report = score_all(setting, setting.setup(0).hidden(setting.seed, worlds), chosen, workers)
        if svg is not None:
            write_text(svg, picture(setting, report), "--svg")
    if json:
        sys.stdout.write(TypeAdapter(ScoreReport).dump_json(report).decode() + "\n")
        return
    show(setting, report, console())
    if svg is not None:
        console().print(f"picture: {svg.resolve()}", soft_wrap=True, highlight=False)


def _baselines(given: list[str] | None) -> tuple[str, ...]:
    from loop.commands.inputs import choose_baselines  # noqa: PLC0415

    return choose_baselines(given) if given else ()


def score_all(
    setting: s.Setting, setup: OfflineSetup, policies: Sequence[PolicySource], workers: int
) -> ScoreReport:
    """Every policy in every world of the setup, with a progress bar on a terminal."""
    first_of: dict[str, PolicySource] = {}
    for policy in policies:
        first_of.setdefault(policy.digest, policy)
    worlds = range(len(setup.worlds))
    runs = [Run(policy, world) for world in worlds for policy in first_of.values()]
    results = {
        (run.policy.digest, run.world): result
        for run, result in zip(runs, run_all(setup, runs, workers, "replaying"), strict=True)
    }

    def value(policy: PolicySource, world: int) -> float:
        return sum(window_value(w, setting.objective) for w in results[policy.digest, world].windows)

    scores = []
    for world in worlds:
        base = value(policies[0], world)
        for policy in policies:
            mine, twin = value(policy, world), first_of[policy.digest]
            scores.append(
                Scored(
                    policy.name,
                    policy.digest,
                    world,
                    mine,
                    mine / base if base else 1.0,
                    results[policy.digest, world],
                    same_as="" if twin is policy else twin.name,
                )
            )
    infos = tuple(window_info(w) for w in setup.windows)
    return ScoreReport(setting.describe(), infos, tuple(scores))


def run_all(setup: OfflineSetup, runs: Sequence[Run], workers: int, what: str) -> list[RunResult]:
    """All runs side by side, in the order asked for, with a progress bar on a terminal."""
    results: dict[int, RunResult] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    errors = Console(stderr=True)
    with (
        Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar,
        SideBySide(setup, min(workers, max(1, len(runs)))) as pool,
    ):
        task = bar.add_task(what, total=len(runs))
        for index, result in pool.run(runs):
            results[index] = result
            bar.advance(task)
    return [results[i] for i in range(len(runs))]


_DISPENSABLE = ("MJ", "device-h", "solve", "serving", "reconfig", "faults", "goodput", "TTFT p99 s")
"""Columns that a narrow console does without, the first ones first."""
_LEAST_POLICY = 16
"""Characters of a policy's name on one line."""


def console() -> Console:
    """Stdout, wide enough for the tables where it is no terminal."""
    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if wide else 140)


def show(setting: s.Setting, report: ScoreReport, out: Console) -> None:
    """The table of the nominal world with the ratios of the perturbed ones, and a line of windows each."""
    nominal = [x for x in report.scores if x.world == 0]
    out.print(_table(setting, report, nominal, out.width))
    out.print(_sparklines(setting, nominal))
    faults = [(x.policy, e) for x in report.scores if not x.same_as for e in x.run.faults.examples[:2]]
    for name, example in faults[:6]:
        out.print(f"[red]fault[/red] of {escape(name)}: {escape(example)}", highlight=False)


def _table(setting: s.Setting, report: ScoreReport, nominal: Sequence[Scored], width: int) -> Table:
    worlds = max(x.world for x in report.scores)
    table = Table(
        title=f"{setting.title}: {setting.requests:,} requests, {len(setting.windows)} windows, "
        f"{setting.mode} replay, objective {setting.objective}",
        title_justify="left",
        header_style="bold",
    )
    best = min(x.objective for x in nominal)
    rows = []
    for x in nominal:
        r = x.run
        ratios = [y.ratio for y in report.scores if y.world and y.digest == x.digest and y.policy == x.policy]
        unserved = r.stats.rejected + r.stats.lost
        cells = {
            "policy": escape(x.policy)
            + (f" [dim](the same as {escape(x.same_as)})[/dim]" if x.same_as else "")
            + (f" [red]({unserved} not served)[/red]" if unserved else ""),
            "total s": f"{r.total_execution_time_s:,.1f}",
            "serving": f"{r.serving_s:,.1f}",
            "solve": f"{r.solve_s:,.2f}",
            "reconfig": f"{r.reconfiguration_s:,.1f}",
            "TTFT p99 s": f"{r.stats.ttft_s.p99:,.1f}",
            "goodput": f"{r.stats.goodput:.1%}",
            "device-h": f"{r.resources.device_s / 3600:,.1f}",
            "MJ": f"{r.resources.joules / 1e6:,.1f}",
            "faults": str(r.faults.total) if r.faults.total else "-",
            "objective": f"{x.objective:,.1f}",
            "ratio": f"{x.ratio:.3f}",
            f"in {worlds} perturbed": spread(ratios),
        }
        rows.append((cells, "bold green" if x.objective == best and len(nominal) > 1 else ""))
    hidden = {"objective"} if setting.objective is Objective.TIME else set()  # it is the total
    if setting.mode is ReplayMode.ONLINE:
        hidden |= {"serving", "solve"}  # the clock runs on, busy or not
    if not any(x.run.faults.total for x in nominal):
        hidden.add("faults")
    if not worlds:
        hidden.add("in 0 perturbed")
    shown = _fitting([name for name in rows[0][0] if name not in hidden], [cells for cells, _ in rows], width)
    for name in shown:
        if name == "policy":
            table.add_column(name, overflow="fold")
        else:  # not to be narrowed: a figure of which a digit is cut off says something else
            table.add_column(name.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for cells, style in rows:
        table.add_row(*(cells[name] for name in shown), style=style)
    return table


def _fitting(names: list[str], rows: Sequence[dict[str, str]], width: int) -> list[str]:
    """The columns that a console of `width` characters holds uncut; the least telling ones go first (`--json` has
    them all)."""

    def needed(name: str) -> int:
        least = [_LEAST_POLICY] if name == "policy" else [len(cells[name]) for cells in rows]
        return 3 + max(*map(len, name.split(" ", 1)), *least)

    shown = list(names)
    for name in _DISPENSABLE:
        if 1 + sum(map(needed, shown)) > width and name in shown:
            shown.remove(name)
    return shown


def spread(ratios: Sequence[float]) -> str:
    """Mean and range of some ratios, in a few characters."""
    if not ratios:
        return ""
    mean = sum(ratios) / len(ratios)
    return f"{mean:.3f} ({min(ratios):.3f} to {max(ratios):.3f})" if len(ratios) > 1 else f"{mean:.3f}"


def _sparklines(setting: s.Setting, nominal: Sequence[Scored]) -> Table:
    values = {i: [window_value(w, setting.objective) for w in x.run.windows] for i, x in enumerate(nominal)}
    top = max((v for line in values.values() for v in line), default=0.0)
    table = Table(box=None, show_header=False)
    table.add_column("", style="dim", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_row(
        "requests of each window", sparkline([float(len(w.requests)) for w in setting.windows]), style="dim"
    )
    for i, x in enumerate(nominal):
        table.add_row(escape(x.policy), sparkline([*values[i], top])[:-1], style="")
    table.add_row("", f"each on the same scale, 0 to {top:,.1f}", style="dim")
    return table


def picture(setting: s.Setting, report: ScoreReport) -> str:
    """The policies window by window as SVG text."""
    lines = [
        Series(x.policy, tuple(window_value(w, setting.objective) for w in x.run.windows))
        for x in report.scores
        if x.world == 0
    ]
    unit = "s" if setting.mode is ReplayMode.BATCH and setting.objective == "time" else ""
    return draw_windows(
        f"{setting.title}: {setting.objective} of each window", report.windows, lines, unit=unit
    )


def write_text(path: Path, text: str, option: str) -> None:
    """Write a file whole or not at all. Raises InputError when it cannot be."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror} ({option})") from error
