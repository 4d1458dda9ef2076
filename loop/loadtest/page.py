"""The report of a load test as one self-contained HTML page; its pictures follow the reader's light or dark theme."""

from __future__ import annotations

import html
from collections.abc import Sequence

from loop.loadtest.picture import Line, draw
from loop.loadtest.summary import LoadReport, Spread


def render_page(report: LoadReport) -> str:
    """The whole page as text."""
    title = f"Load test of {report.model}"
    sections = [
        _section("Latency over the test", _latency(report), "By the time at which requests were due."),
        _section("Load over the test", _load(report), "What the workload asked for, and what came back."),
        _section("Latencies", _table(report), "Of answered requests, from sending; in milliseconds."),
        _section("Errors", _errors(report), ""),
        _section("The client", _client(report), "What is late here is not the server's fault."),
    ]
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{_CSS}</style></head><body><main>{_hero(report, title)}{''.join(sections)}</main></body></html>"
    )


def _hero(report: LoadReport, title: str) -> str:
    cards = [
        (f"{report.per_s(report.answered):,.1f}/s", "requests answered"),
        (f"{report.per_s(report.output_tokens):,.0f}/s", "output tokens"),
        (_ms(report.ttft_s.p50), "TTFT, median"),
        (_ms(report.e2e_s.p99), "E2E, p99"),
        (
            f"{report.goodput:.1%}",
            f"within the SLO ({report.slo.ttft_s:g} s TTFT, {report.slo.tpot_s:g} s TPOT)",
        ),
    ]
    inner = "".join(f"<div class='card'><b>{v}</b><span>{html.escape(k)}</span></div>" for v, k in cards)
    badge = " <span class='badge'>generated workload</span>" if report.generated else ""
    ended = " <span class='badge'>ended by hand</span>" if report.ended_by_hand else ""
    return (
        f"<header><p class='eyebrow'>Autopoiesis</p><h1>{html.escape(title)}</h1>"
        f"<p class='lead'>{report.sent:,} of {report.planned:,} requests sent in {report.elapsed_s:,.1f} s: "
        f"{report.answered:,} answered, {report.failed:,} failed.</p>"
        f"<p class='meta'>{html.escape(report.url)} · {html.escape(report.endpoint)} · "
        f"{html.escape(report.workload)}{badge}{ended}</p><div class='cards'>{inner}</div></header>"
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f} ms" if seconds < 10.0 else f"{seconds:,.1f} s"


def _latency(report: LoadReport) -> str:
    at = [b.start_s for b in report.bins]
    lines = [
        Line("E2E p90", [b.e2e_p90_s for b in report.bins], "#4c78a8", dashed=True),
        Line("E2E p50", [b.e2e_p50_s for b in report.bins], "#4c78a8"),
        Line("TTFT p90", [b.ttft_p90_s for b in report.bins], "#16a34a", dashed=True),
        Line("TTFT p50", [b.ttft_p50_s for b in report.bins], "#16a34a"),
    ]
    return draw("Latency over the test", at, lines, unit="s", log=True)


def _load(report: LoadReport) -> str:
    width_s = report.elapsed_s / max(1, len(report.bins))
    at = [b.start_s for b in report.bins]
    lines = [
        Line("due, requests/s", [b.sent / width_s for b in report.bins], "#94a3b8"),
        Line("answered, requests/s", [b.answered / width_s for b in report.bins], "#16a34a"),
        Line("failed, requests/s", [b.failed / width_s for b in report.bins], "#d1495b"),
        Line("in flight", [float(b.in_flight) for b in report.bins], "#e4812f", dashed=True),
    ]
    return draw("Load over the test", at, lines, unit="")


def _table(report: LoadReport) -> str:
    rows = [
        ("TTFT", report.ttft_s),
        ("TPOT", report.tpot_s),
        ("ITL (between pieces)", report.itl_s),
        ("E2E", report.e2e_s),
    ]
    return _spreads(rows)


def _spreads(rows: Sequence[tuple[str, Spread]]) -> str:
    head = "".join(f"<th>{h}</th>" for h in ("", "count", "mean", "p50", "p90", "p95", "p99", "max"))
    body = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{s.count:,}</td>"
        + "".join(f"<td>{1e3 * v:,.2f}</td>" for v in (s.mean, s.p50, s.p90, s.p95, s.p99, s.max))
        + "</tr>"
        for name, s in rows
    )
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _errors(report: LoadReport) -> str:
    if not report.errors:
        return "<p>None.</p>"
    rows = "".join(
        f"<tr><td>{html.escape(e.kind)}</td><td>{e.count:,}</td><td class='text'>{html.escape(e.example)}</td></tr>"
        for e in report.errors
    )
    head = "<tr><th>kind</th><th>requests</th><th class='text'>for example</th></tr>"
    return f"<div class='scroll'><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>"


def _client(report: LoadReport) -> str:
    client = report.client
    rows = [("sent later than due", client.send_lag_s), ("clock late", client.loop_lag_s)]
    verdict = (
        "<p class='warn'>The client was overloaded: its own delays are in the latencies above.</p>"
        if client.overloaded
        else ""
    )
    notes = [
        f"{client.cpu_share:.0%} of a core, {client.connections:,} connections, at most "
        f"{client.most_in_flight:,} requests in flight"
    ]
    if report.clipped:
        notes.append(f"{report.clipped:,} requests were made shorter to fit the model")
    if report.short_answers:
        notes.append(f"{report.short_answers:,} answers were shorter than the workload wanted")
    if not report.counted_by_server:
        notes.append("the server counts no tokens: each piece of an answer stands for one")
    return verdict + _spreads(rows) + "<p class='note'>" + "; ".join(notes) + ".</p>"


def _section(title: str, content: str, note: str) -> str:
    small = f"<p class='note'>{note}</p>" if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{small}{content}</section>"


_CSS = """
:root{color-scheme:light dark;--ink:#0f172a;--soft:#475569;--line:#e2e8f0;--bg:#f8fafc;--panel:#fff}
@media (prefers-color-scheme:dark){:root{--ink:#ececea;--soft:#a0a29e;--line:#3a3d41;--bg:#191a1c;--panel:#222427}}
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
.warn{color:#b45309;font-weight:600}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13px;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:6px 9px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child,.text{text-align:left}thead th{color:var(--soft);font-weight:600}
svg{width:100%;height:auto}
"""
