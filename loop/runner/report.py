"""The HTML report of an experiment: one self-contained file with its plots, tables and source diff."""

from __future__ import annotations

import difflib
import html
import os
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from loop.contracts import PolicySource
from loop.runner.results import ExperimentResult, SystemKind, SystemResult, saving
from loop.runner.table import headline

_OURS = "#16a34a"
_PARTS = (("serving", "#3b82f6"), ("reconfiguration", "#f59e0b"), ("solve", "#ef4444"))
_MUTED = ("#94a3b8", "#a78bfa", "#f472b6", "#38bdf8", "#fb923c", "#a3a3a3", "#c084fc", "#2dd4bf", "#facc15")
_LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "font": {"family": "Inter, system-ui, sans-serif", "size": 13},
    "margin": {"l": 60, "r": 20, "t": 20, "b": 45},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "legend": {"orientation": "h", "y": -0.2},
}


def write_report(result: ExperimentResult, path: Path) -> Path:
    """Write the report to `path`, all or nothing. Raises OSError when the folder cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render(result)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".html.part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def render(result: ExperimentResult) -> str:
    """The whole page as text."""
    sections = [
        (
            "What it was worth",
            _totals(result),
            "Lower is better. The oracle takes the best policy of each window and switches for free: the limit.",
        ),
        (
            "Window by window",
            _per_window(result),
            "Time of each window, all its costs included, against the median of the rivals (1.0): lower is "
            "better. Marks show what the world did; green lines show where a new policy took over.",
        ),
        ("What the world asked for", _demand(result), "Requests of each window, and how long they were."),
        (
            "What the evolving system did with the hardware",
            _devices(result),
            "Devices in the plan of each window, by kind.",
        ),
    ]
    body = [_hero(result)]
    body += [_section(title, _figure(figure), note) for title, figure, note in sections]
    body.append(_section("All systems", _table(result), ""))
    body.append(_section("How the policy was rewritten", _evolution(result), ""))
    body.append(
        _section(
            "From the first policy to the last",
            _diff(result.first, result.last),
            f"{html.escape(result.first.name)} ({result.first.digest}) → "
            f"{html.escape(result.last.name)} ({result.last.digest})",
        )
    )
    body.append(_section("The policy that serves at the end", _source(result.last), ""))
    body.append(_section("How to read this", _notes(result), ""))
    title = html.escape(result.title)
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{_CSS}</style><script>{get_plotlyjs()}</script></head>"
        f"<body><main>{''.join(body)}</main></body></html>"
    )


def _hero(result: ExperimentResult) -> str:
    ours = result.system(SystemKind.EVOLVING)
    cards: list[tuple[str, str]] = []
    if ours is not None and result.fair_rivals:
        rivals = sorted(result.fair_rivals, key=lambda s: s.run.total_execution_time_s)
        mean = sum(saving(ours, s) for s in rivals) / len(rivals)
        cards = [
            (f"{ours.run.total_execution_time_s:,.0f} s", "total execution time"),
            (f"{saving(ours, rivals[0]):+.1%}", f"saved against {rivals[0].name}, the best rival"),
            (f"{mean:+.1%}", f"saved on average against {len(rivals)} rivals"),
            (f"{len(result.policies) - 1}", "policies promoted while serving"),
            (f"{result.cost.candidates}", "candidates tried in the sandbox"),
        ]
    inner = "".join(f"<div class='card'><b>{v}</b><span>{html.escape(k)}</span></div>" for v, k in cards)
    badge = " <span class='badge'>generated workload</span>" if result.generated else ""
    return (
        f"<header><p class='eyebrow'>Autopoiesis</p><h1>{html.escape(result.title)}</h1>"
        f"<p class='lead'>{html.escape(headline(result))}</p>"
        f"<p class='meta'>{html.escape(result.workload)}{badge} · {html.escape(result.cluster)} · "
        f"{html.escape(', '.join(result.models))} · {result.requests:,} requests · "
        f"{len(result.windows)} windows · {result.mode} replay · seed {result.seed}</p>"
        f"<div class='cards'>{inner}</div></header>"
    )


def _totals(result: ExperimentResult) -> go.Figure:
    systems = sorted(result.systems, key=lambda s: -s.run.total_execution_time_s)
    labels = [_label(s) for s in systems]
    figure = go.Figure()
    for part, colour in _PARTS:
        values = [getattr(s.run, f"{part}_s") for s in systems]
        figure.add_bar(y=labels, x=values, name=part, orientation="h", marker_color=colour)
    for s, label in zip(systems, labels, strict=True):
        total = s.run.total_execution_time_s
        figure.add_annotation(
            x=total, y=label, text=f" {total:,.0f} s", showarrow=False, xanchor="left", font={"size": 12}
        )
    figure.update_layout(**_LAYOUT, barmode="stack", height=70 + 38 * len(systems))
    figure.update_xaxes(title="seconds of virtual time")
    figure.update_yaxes(automargin=True)
    return figure


def _label(system: SystemResult) -> str:
    return f"<b>{system.name}</b>" if system.kind is SystemKind.EVOLVING else system.name


def _per_window(result: ExperimentResult) -> go.Figure:
    figure = go.Figure()
    muted = iter(_MUTED * 3)
    middle = _median_of_rivals(result)
    for s in result.systems:
        ours = s.kind is SystemKind.EVOLVING
        line = {"color": _OURS, "width": 4} if ours else {"color": next(muted), "width": 1.5}
        if s.kind is SystemKind.ORACLE:
            line = {"color": "#475569", "width": 2, "dash": "dot"}
        figure.add_scatter(
            x=[w.index for w in s.run.windows],
            y=[w.total_s / m for w, m in zip(s.run.windows, middle, strict=False)],
            customdata=[w.total_s for w in s.run.windows],
            hovertemplate="window %{x}: %{customdata:.1f} s, %{y:.2f} of the median rival",
            mode="lines+markers" if ours else "lines",
            name=s.name,
            line=line,
        )
    ours_run = result.system(SystemKind.EVOLVING)
    if ours_run is not None:
        before = ""
        for w in ours_run.run.windows:
            if before and w.policy != before:
                figure.add_vline(x=w.index, line_color=_OURS, line_dash="dash", opacity=0.5)
            before = w.policy
    for info in result.windows:
        if info.events:
            text = "<br>".join(info.events)
            figure.add_annotation(
                x=info.index, y=1.0, yref="paper", text=text, showarrow=False, yanchor="top"
            )
    figure.update_layout(**_LAYOUT, height=430)
    figure.update_xaxes(title="window", dtick=1)
    figure.update_yaxes(title="time / median rival", range=[0.5, 1.7])
    return figure


def _median_of_rivals(result: ExperimentResult) -> list[float]:
    """Per window the median time of the rivals; of all systems when there are none."""
    systems = result.rivals or result.systems
    columns = zip(*([w.total_s for w in s.run.windows] for s in systems), strict=False)
    return [statistics.median(column) or 1.0 for column in columns]


def _demand(result: ExperimentResult) -> go.Figure:
    x = [w.index for w in result.windows]
    figure = go.Figure()
    figure.add_bar(x=x, y=[w.requests for w in result.windows], name="requests", marker_color="#cbd5e1")
    for name, colour in (("input", "#7c3aed"), ("output", "#db2777")):
        figure.add_scatter(
            x=x,
            y=[getattr(w, f"{name}_tokens_mean") for w in result.windows],
            name=f"mean {name} tokens",
            yaxis="y2",
            line={"color": colour, "width": 3},
        )
    figure.update_layout(
        **_LAYOUT,
        height=330,
        yaxis={"title": "requests"},
        yaxis2={"title": "tokens", "overlaying": "y", "side": "right", "rangemode": "tozero"},
    )
    figure.update_xaxes(title="window", dtick=1)
    return figure


def _devices(result: ExperimentResult) -> go.Figure:
    figure = go.Figure()
    ours = result.system(SystemKind.EVOLVING)
    if ours is None:
        return figure
    shapes: dict[str, list[int]] = {}
    windows = ours.run.windows
    for i, w in enumerate(windows):
        for r in w.plan.replicas:
            name = f"{r.devices[0].split('/')[0].rsplit('-', 1)[0]} tp{r.tp}" + (
                f" pp{r.pp}" if r.pp > 1 else ""
            )
            shapes.setdefault(name, [0] * len(windows))[i] += len(r.devices)
    for name, counts in sorted(shapes.items()):
        figure.add_bar(x=[w.index for w in windows], y=counts, name=name)
    figure.update_layout(**_LAYOUT, barmode="stack", height=330)
    figure.update_xaxes(title="window", dtick=1)
    figure.update_yaxes(title="devices")
    return figure


def _figure(figure: go.Figure) -> str:
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False}))


def _section(title: str, content: str, note: str) -> str:
    small = f"<p class='note'>{note}</p>" if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{small}{content}</section>"


def _table(result: ExperimentResult) -> str:
    ours = result.system(SystemKind.EVOLVING)
    head = (
        "system",
        "total s",
        "serving s",
        "solve s",
        "reconfig. s",
        "TTFT p50 s",
        "TTFT p99 s",
        "TPOT p50 ms",
        "E2E p99 s",
        "goodput",
        "device-h",
        "MJ",
        "faults",
        "not served",
        "evolving saves",
    )
    rows = []
    for s in sorted(result.systems, key=lambda s: s.run.total_execution_time_s):
        r = s.run
        cells = (
            s.name,
            f"{r.total_execution_time_s:,.1f}",
            f"{r.serving_s:,.1f}",
            f"{r.solve_s:,.2f}",
            f"{r.reconfiguration_s:,.1f}",
            f"{r.stats.ttft_s.p50:,.2f}",
            f"{r.stats.ttft_s.p99:,.2f}",
            f"{r.stats.tpot_s.p50 * 1e3:,.1f}",
            f"{r.stats.e2e_s.p99:,.1f}",
            f"{r.stats.goodput:.1%}",
            f"{r.resources.device_s / 3600:,.2f}",
            f"{r.resources.joules / 1e6:,.2f}",
            str(r.faults.total),
            str(r.stats.rejected + r.stats.lost),
            f"{saving(ours, s):+.1%}" if ours is not None and s is not ours else "",
        )
        title = html.escape(s.note)
        rows.append(
            f"<tr class='{s.kind}' title='{title}'>"
            + "".join(f"<td>{html.escape(c)}</td>" for c in cells)
            + "</tr>"
        )
    header = "".join(f"<th>{h}</th>" for h in head)
    return f"<div class='scroll'><table><thead><tr>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _evolution(result: ExperimentResult) -> str:
    if not result.evolution:
        return "<p>No step of evolution ran.</p>"
    items = []
    deaths: Counter[str] = Counter()
    names = {p.digest: p for p in result.policies}
    for step in result.evolution:
        deaths.update(step.detail.get("deaths", {}))
        if step.champion is not None and step.champion in names:
            policy = names[step.champion]
            what = (
                f"<b>{html.escape(policy.name)}</b> <code>{policy.digest}</code> takes over at window "
                f"{step.tick}"
            )
            note = html.escape(policy.note)
            items.append(f"<li class='promoted'>{what}<br><span>{note}</span></li>")
        else:
            items.append(f"<li><span>window {step.tick}: {html.escape(step.reason)}</span></li>")
    dead = ", ".join(f"{html.escape(k)} {n}" for k, n in deaths.most_common())
    cost = (
        f"<p>{result.cost.candidates} candidates, {result.cost.evaluations} evaluations in the twin, "
        f"{result.cost.wall_s:.0f} s of wall time beside serving. Deaths: {dead or 'none'}.</p>"
    )
    return cost + f"<ol class='steps'>{''.join(items)}</ol>"


def policy_diff(first: PolicySource, last: PolicySource) -> list[str]:
    """Unified diff of two policies, line by line."""
    return list(
        difflib.unified_diff(
            first.source.splitlines(),
            last.source.splitlines(),
            f"{first.name} ({first.digest})",
            f"{last.name} ({last.digest})",
            lineterm="",
        )
    )


def _diff(first: PolicySource, last: PolicySource) -> str:
    lines = policy_diff(first, last)
    if not lines:
        return "<p>The first policy still serves: nothing that evolution tried was proven better.</p>"
    kinds = {"+": "add", "-": "del", "@": "hunk"}
    spans = [f"<span class='{kinds.get(line[:1], '')}'>{html.escape(line)}</span>" for line in lines]
    return f"<pre class='code'>{chr(10).join(spans)}</pre>"


def _source(policy: PolicySource) -> str:
    return f"<details><summary>{html.escape(policy.name)} ({policy.digest})</summary><pre class='code'>{html.escape(policy.source)}</pre></details>"


def _notes(result: ExperimentResult) -> str:
    notes = (
        "Total execution time = serving + solve + reconfiguration. Solve counts only while nothing could "
        "serve; reconfiguration is the time with work pending, weighted by the share of planned devices that "
        "drained, loaded or warmed up.",
        "All systems meet the same requests and the same events in the same judged world, whose hardware "
        "parameters are hidden from policies and from the worlds that evolution simulates.",
        "Evolution sees past windows only. A policy that it hands over serves from the next monitoring point.",
        *result.notes,
    )
    return "<ul>" + "".join(f"<li>{html.escape(n)}</li>" for n in notes) + "</ul>"


_CSS = """
:root{--ink:#0f172a;--soft:#475569;--line:#e2e8f0;--bg:#f8fafc;--panel:#fff;--green:#16a34a}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.55 Inter,system-ui,-apple-system,'Segoe UI',sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 20px 80px}
header{background:linear-gradient(135deg,#052e16,#14532d 45%,#0f766e);color:#f0fdf4;border-radius:18px;padding:34px 36px}
.eyebrow{letter-spacing:.18em;text-transform:uppercase;font-size:12px;opacity:.75;margin:0}
h1{margin:.2em 0 .3em;font-size:32px;line-height:1.15}.lead{font-size:18px;max-width:70ch;margin:.4em 0}
.meta{opacity:.8;font-size:13px}.badge{background:#fde68a;color:#713f12;border-radius:99px;padding:1px 9px;font-size:12px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;margin-top:20px}
.card{background:rgba(255,255,255,.1);border:1px solid rgba(255,255,255,.18);border-radius:12px;padding:12px 14px}
.card b{display:block;font-size:26px}.card span{font-size:12.5px;opacity:.85}
section{background:var(--panel);border:1px solid var(--line);border-radius:16px;padding:20px 24px;margin-top:18px}
h2{margin:.1em 0 .4em;font-size:19px}.note{color:var(--soft);margin:.2em 0 .6em;font-size:13.5px}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:6px 9px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{color:var(--soft);font-weight:600}
tr.evolving td{background:#f0fdf4;font-weight:700}tr.oracle td{color:#64748b;font-style:italic}
.code{background:#0b1220;color:#e2e8f0;border-radius:12px;padding:16px;overflow:auto;font:12.5px/1.5 ui-monospace,Menlo,Consolas,monospace;max-height:620px}
.code .add{color:#86efac;background:rgba(34,197,94,.13);display:inline-block;min-width:100%}
.code .del{color:#fca5a5;background:rgba(239,68,68,.13);display:inline-block;min-width:100%}.code .hunk{color:#93c5fd}
.steps{padding-left:22px}.steps li{margin:5px 0;color:var(--soft)}.steps li.promoted{color:var(--ink);border-left:3px solid var(--green);padding-left:10px}
.steps span{font-size:13px;color:var(--soft)}details summary{cursor:pointer}
"""
