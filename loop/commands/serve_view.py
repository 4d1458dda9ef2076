"""What a live run looks like in a terminal."""

from __future__ import annotations

from datetime import UTC, datetime

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from loop.contracts import ServingStats
from loop.runner.serving_status import ServingStatus


def line(text: str, at_s: float | None = None) -> str:
    """One thing that happened, with its time of day."""
    at = datetime.now(UTC) if at_s is None else datetime.fromtimestamp(at_s, UTC)
    return f"{at.astimezone():%H:%M:%S} {text}"


def page(status: ServingStatus, width: int = 100) -> RenderableType:
    """All of it."""
    parts: list[RenderableType] = [_head(status)]
    if status.replicas:
        parts.append(_replicas(status))
    for happening in list(status.happenings):
        parts.append(
            Text(line(happening.text, happening.at_s), style="dim", no_wrap=width > 60, overflow="ellipsis")
        )
    return Group(*parts)


def _head(status: ServingStatus) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("autopoiesis", escape(f"{status.phase} {status.url}"))
    table.add_row(
        "policy", escape(status.champion + (f"; on trial: {status.on_trial}" if status.on_trial else ""))
    )
    table.add_row("evolution", escape(f"{status.evolution}; {status.promotions} promoted"))
    table.add_row(
        "requests",
        f"{status.in_flight} in flight, {status.finished} served, {status.failed} failed, "
        f"{status.cancelled} cancelled",
    )
    if status.machine:
        table.add_row("machine", escape(status.machine))
    table.add_row(
        f"window {status.tick}" if status.tick >= 0 else "window", _window(status.last, status.window_s)
    )
    if status.tick >= 0:
        table.add_row(
            "feels", f"pain {status.pain:.2f}, pleasure {status.pleasure:.2f}, {status.faults} faults"
        )
    return table


def _window(stats: ServingStats | None, window_s: float) -> str:
    if stats is None:
        return f"the first one runs ({window_s:g} s)"
    if not stats.finished:
        return "nothing was served"
    return (
        f"{stats.finished / window_s:.1f} req/s, {stats.output_tokens / window_s:.0f} tokens/s, "
        f"TTFT {1e3 * stats.ttft_s.p50:.0f}/{1e3 * stats.ttft_s.p99:.0f} ms, "
        f"TPOT {1e3 * stats.tpot_s.p50:.1f} ms (p50/p99), goodput {stats.goodput:.0%}"
    )


def _replicas(status: ServingStatus) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("replica", "model", "devices", "stage"):
        table.add_column(column, no_wrap=True)
    for column in ("pid", "runs", "waits", "KV", "batch"):
        table.add_column(column, justify="right", no_wrap=True)
    for r in status.replicas:
        table.add_row(
            str(r.id),
            escape(r.model),
            ", ".join(d.rpartition("/")[2] for d in r.devices),
            r.stage,
            str(r.pid or "-"),
            str(r.running),
            str(r.waiting),
            f"{r.kv_share:.0%}",
            f"{r.max_num_seqs}/{r.max_num_batched_tokens}",
        )
    return table
