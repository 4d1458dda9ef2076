"""The table of an experiment, in the terminal: live while it runs, and at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loop.runner.results import ExperimentResult, SystemKind, saving

_STYLE = {
    SystemKind.EVOLVING: "bold green",
    SystemKind.ORACLE: "dim italic",
    SystemKind.SEARCHED: "cyan",
    SystemKind.USER: "yellow",
    SystemKind.BASELINE: "",
}


_LESSER = ("solve", "TPOT p50 ms", "kJ/req", "faults")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one system is."""

    kind: SystemKind
    done: int = 0
    total: int = 0
    total_s: float = 0.0
    ttft_p99_s: float = 0.0
    note: str = ""


def live_table(title: str, rows: Mapping[str, Progress], footer: str) -> RenderableType:
    """The table while the experiment runs."""
    table = Table(title=title, title_justify="left", expand=False, header_style="bold")
    table.add_column("system")
    table.add_column("windows", justify="right")
    table.add_column("", width=14)
    table.add_column("virtual time so far", justify="right")
    table.add_column("now", overflow="ellipsis", no_wrap=True, max_width=44)
    for name, p in rows.items():
        style = _STYLE[p.kind]
        table.add_row(
            Text(name, style=style),
            f"{p.done}/{p.total}" if p.total else "-",
            ProgressBar(total=max(1, p.total), completed=p.done, width=14),
            f"{p.total_s:,.1f} s" if p.done else "",
            Text(p.note, style="dim"),
        )
    return Group(table, Text(footer, style="dim"))


def final_table(result: ExperimentResult, width: int = 140) -> Table:
    """Every system against the evolving one; below 130 columns the lesser figures are left out."""
    hidden = set() if width >= 130 else set(_LESSER)
    if any(s.run.faults.total for s in result.systems):
        hidden.discard("faults")
    ours = result.system(SystemKind.EVOLVING)
    table = Table(
        title=f"{result.title}: total execution time and its parts ({result.requests:,} requests, "
        f"{len(result.windows)} windows, {result.mode} replay"
        f"{', generated workload' if result.generated else ''})",
        title_justify="left",
        header_style="bold",
    )
    for name, justify in (
        ("system", "left"),
        ("total s", "right"),
        ("serving", "right"),
        ("solve", "right"),
        ("reconfig", "right"),
        ("TTFT p99 s", "right"),
        ("TPOT p50 ms", "right"),
        ("goodput", "right"),
        ("device-h", "right"),
        ("kJ/req", "right"),
        ("faults", "right"),
        ("saved", "right"),
    ):
        if name not in hidden:
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for s in sorted(result.systems, key=lambda s: -s.run.total_execution_time_s):
        r = s.run
        versus = ""
        if ours is not None and s is not ours:
            versus = f"{saving(ours, s):+.1%}"
        requests = r.stats.finished + r.stats.rejected + r.stats.lost
        unserved = r.stats.rejected + r.stats.lost
        cells = {
            "system": escape(s.name) + (f" [red]({unserved} not served)[/red]" if unserved else ""),
            "total s": f"{r.total_execution_time_s:,.1f}",
            "serving": f"{r.serving_s:,.1f}",
            "solve": f"{r.solve_s:,.2f}",
            "reconfig": f"{r.reconfiguration_s:,.1f}",
            "TTFT p99 s": f"{r.stats.ttft_s.p99:,.1f}",
            "TPOT p50 ms": f"{r.stats.tpot_s.p50 * 1e3:,.0f}",
            "goodput": f"{r.stats.goodput:.1%}",
            "device-h": f"{r.resources.device_s / 3600:,.1f}",
            "kJ/req": f"{r.resources.joules / max(1, requests) / 1e3:,.2f}",
            "faults": str(r.faults.total) if r.faults.total else "-",
            "saved": versus,
        }
        shown = [text for name, text in cells.items() if name not in hidden]
        table.add_row(*shown, style=_STYLE[s.kind])
    return table


def _versus(saved: float) -> str:
    """How the evolving system compares, in words that go before the other's name."""
    if abs(saved) < 0.0005:
        return "the same as"
    return f"{abs(saved):.1%} {'less' if saved > 0 else 'more'} than"


def headline(result: ExperimentResult) -> str:
    """One paragraph in words."""
    ours = result.system(SystemKind.EVOLVING)
    rivals = result.fair_rivals
    if ours is None or not rivals:
        return ""
    savings = {s.name: saving(ours, s) for s in rivals}
    best = min(rivals, key=lambda s: s.run.total_execution_time_s)
    mean = sum(savings.values()) / len(savings)
    top = max(savings, key=lambda name: savings[name])
    text = f"The evolving system took {ours.run.total_execution_time_s:,.1f} s: "
    text += f"{_versus(savings[best.name])} the best of {len(rivals)} rivals ({best.name})"
    if len(rivals) > 1:
        text += f", {_versus(mean)} them on average, {_versus(savings[top])} {top}"
    text += "."
    oracle = result.system(SystemKind.ORACLE)
    if oracle is not None:
        gap = ours.run.total_execution_time_s / oracle.run.total_execution_time_s - 1
        text += f" The oracle, which knows the best policy of each window and switches for free, is {gap:.1%} away."
    return text
