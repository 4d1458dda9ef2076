"""A workload as one self-contained SVG: arrival rate, lengths over time, distributions of lengths."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from execution.workload.statistics import describe, rate_series
from loop.contracts import Workload

Floats = NDArray[np.float64]
WIDTH, HEIGHT = 960, 700
LEFT, RIGHT = 64, 24
BINS = 96
RATE, INPUT, OUTPUT = "#4f46e5", "#0891b2", "#ea580c"
_STYLE = """
svg { background: #ffffff; font-family: ui-sans-serif, system-ui, "Segoe UI", Helvetica, Arial, sans-serif }
text { fill: #475569; font-size: 12px } .title { fill: #0f172a; font-size: 20px; font-weight: 650 }
.head { fill: #0f172a; font-size: 13px; font-weight: 600 } .end { text-anchor: end } .mid { text-anchor: middle }
.grid { stroke: #e2e8f0; stroke-width: 1 } .axis { stroke: #94a3b8; stroke-width: 1 }
@media (prefers-color-scheme: dark) { svg { background: #0b1120 } text { fill: #94a3b8 }
.title, .head { fill: #f1f5f9 } .grid { stroke: #1e293b } .axis { stroke: #475569 } }
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """A rectangle with linear x from 0 to x_top, and linear or logarithmic y."""

    left: float
    top: float
    width: float
    height: float
    x_top: float
    y_low: float
    y_top: float
    log: bool = False

    def x(self, value: float) -> float:
        """Pixel of an x value."""
        return self.left + self.width * value / self.x_top

    def y(self, value: float) -> float:
        """Pixel of a y value."""
        if self.log:
            share = math.log(max(value, self.y_low) / self.y_low) / math.log(self.y_top / self.y_low)
        else:
            share = (value - self.y_low) / (self.y_top - self.y_low)
        return self.top + self.height * (1.0 - min(share, 1.0))

    def line(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        """Path data of a polyline."""
        points = [f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in zip(xs, ys, strict=True)]
        return "M" + " L".join(points)

    def band(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float]) -> str:
        """Path data of the area between two lines."""
        back = self.line(list(reversed(xs)), list(reversed(low)))
        return self.line(xs, high) + " L" + back[1:] + " Z"


def svg(workload: Workload) -> str:
    """The picture of a workload as SVG text; reads well on light and on dark pages."""
    numbers = describe(workload)
    kind = "generated" if workload.generated else "trace"
    sub = (
        f"{kind} · {numbers.count:,} requests in {_clock(numbers.duration_s)} · "
        f"{numbers.rate_per_s:.3g}/s, peak {numbers.peak_rate_per_s:.3g}/s · CV {numbers.cv:.2f} · "
        f"prefix sharing {numbers.prefix_sharing:.0%}"
    )
    body = [
        f'<text class="title" x="{LEFT}" y="38">{html.escape(workload.name[:70])}</text>',
        f'<text x="{LEFT}" y="60">{html.escape(sub)}</text>',
        *_rate_panel(workload),
        *_length_panel(workload),
        *_histograms(workload),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img"><title>{html.escape(workload.name)}</title>'
        f"<style>{_STYLE}</style>\n" + "\n".join(body) + "\n</svg>\n"
    )


def _rate_panel(workload: Workload) -> list[str]:
    rates = rate_series(workload, BINS)
    if not len(rates):
        return []
    duration_s = workload.requests[-1].arrival_s
    panel = Panel(LEFT, 104, WIDTH - LEFT - RIGHT, 140, duration_s, 0.0, float(rates.max()) * 1.08)
    xs = ((np.arange(BINS) + 0.5) * duration_s / BINS).tolist()
    values = rates.tolist()
    return [
        f'<text class="head" x="{LEFT}" y="94">Arrival rate, requests/s</text>',
        *_frame(panel, _linear_ticks(panel.y_top)),
        f'<path d="{panel.band(xs, [0.0] * BINS, values)}" fill="{RATE}" fill-opacity="0.16"/>',
        f'<path d="{panel.line(xs, values)}" fill="none" stroke="{RATE}" stroke-width="1.8" '
        'stroke-linejoin="round"/>',
    ]


def _length_panel(workload: Workload) -> list[str]:
    times = np.array([request.arrival_s for request in workload.requests])
    if not len(times) or times[-1] <= 0:
        return []
    columns = (_column(workload, 3), _column(workload, 4))
    top = max(float(column.max()) for column in columns) * 1.2
    duration_s = float(times[-1])
    panel = Panel(LEFT, 300, WIDTH - LEFT - RIGHT, 160, duration_s, 1.0, max(top, 10.0), log=True)
    parts = [
        f'<text class="head" x="{LEFT}" y="290">Tokens over time: median, and 10 to 90 %</text>',
        *_frame(panel, _log_ticks(panel.y_top)),
        *_legend(WIDTH - RIGHT - 140, 286),
    ]
    slot = np.minimum((times / duration_s * BINS).astype(int), BINS - 1)
    for column, colour in zip(columns, (INPUT, OUTPUT), strict=True):
        used = [k for k in range(BINS) if (slot == k).any()]
        xs = [(k + 0.5) * duration_s / BINS for k in used]
        low, mid, high = np.array([np.quantile(column[slot == k], (0.1, 0.5, 0.9)) for k in used]).T.tolist()
        parts += [
            f'<path d="{panel.band(xs, low, high)}" fill="{colour}" fill-opacity="0.14"/>',
            f'<path d="{panel.line(xs, mid)}" fill="none" stroke="{colour}" stroke-width="1.8" '
            'stroke-linejoin="round"/>',
        ]
    return parts


def _histograms(workload: Workload) -> list[str]:
    parts: list[str] = []
    width = (WIDTH - LEFT - RIGHT - 56) / 2
    sides = (("Prompt tokens", 3, INPUT, LEFT), ("Answer tokens", 4, OUTPUT, LEFT + width + 56))
    for title, index, colour, left in sides:
        column = _column(workload, index)
        if not len(column):
            continue
        low_power = int(math.log10(float(column.min())))
        span = max(math.log10(float(column.max())) * 1.02 - low_power, 1.0)
        counts, edges = np.histogram(np.log10(column) - low_power, bins=48, range=(0.0, span))
        shares = counts / counts.sum()
        panel = Panel(left, 520, width, 120, span, 0.0, float(shares.max()) * 1.1)
        p50, p90, p99 = np.quantile(column, (0.5, 0.9, 0.99))
        parts += [
            f'<text class="head" x="{left:.0f}" y="510">{title}</text>',
            f'<text class="end" x="{left + width:.0f}" y="510">p50 {p50:,.0f} · p90 {p90:,.0f} · '
            f"p99 {p99:,.0f}</text>",
        ]
        for count, low, high in zip(shares.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if count > 0:
                x, y = panel.x(low), panel.y(count)
                parts.append(
                    f'<rect x="{x + 0.5:.1f}" y="{y:.1f}" width="{max(panel.x(high) - x - 1, 1):.1f}" '
                    f'height="{panel.top + panel.height - y:.1f}" rx="1.5" fill="{colour}"/>'
                )
        base = panel.top + panel.height
        parts.append(f'<line class="axis" x1="{left:.0f}" x2="{left + width:.0f}" y1="{base}" y2="{base}"/>')
        parts += [
            f'<text class="mid" x="{panel.x(power):.1f}" y="{base + 18}">{_short(10.0 ** (power + low_power))}</text>'
            for power in range(int(span) + 1)
        ]
    return parts


def _frame(panel: Panel, ticks: Sequence[float]) -> list[str]:
    """Grid lines with labels, and the clock below."""
    right, base = panel.left + panel.width, panel.top + panel.height
    parts = []
    for tick in ticks:
        y = panel.y(tick)
        parts += [
            f'<line class="grid" x1="{panel.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<text class="end" x="{panel.left - 8}" y="{y + 4:.1f}">{_short(tick)}</text>',
        ]
    parts.append(f'<line class="axis" x1="{panel.left}" x2="{right}" y1="{base}" y2="{base}"/>')
    for moment in _clock_ticks(panel.x_top):
        place = "mid" if moment else ""
        parts.append(
            f'<text class="{place}" x="{panel.x(moment):.1f}" y="{base + 17}">{_clock(moment)}</text>'
        )
    return parts


def _legend(x: float, y: float) -> list[str]:
    parts = []
    for name, colour, shift in (("prompt", INPUT, 0), ("answer", OUTPUT, 76)):
        parts += [
            f'<rect x="{x + shift}" y="{y - 6}" width="14" height="4" rx="2" fill="{colour}"/>',
            f'<text x="{x + shift + 20}" y="{y}">{name}</text>',
        ]
    return parts


def _column(workload: Workload, index: int) -> Floats:
    return np.array([request[index] for request in workload.requests], dtype=np.float64)


def _linear_ticks(top: float) -> list[float]:
    step = 10 ** math.floor(math.log10(top / 2))
    for factor in (1, 2, 5, 10):
        if top / (step * factor) <= 5:
            step *= factor
            break
    return [step * k for k in range(1, int(top / step) + 1)]


def _clock_ticks(top_s: float) -> list[float]:
    """Round moments, at most eight and none at the very end."""
    steps = [10.0**power * lead for power in range(-6, 2) for lead in (1, 2, 5)]
    steps += [60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 14400.0, 21600.0]
    steps += [86400.0 * 2**power for power in range(20)]
    step = next((step for step in steps if top_s / step <= 8), top_s)
    return [step * k for k in range(int(top_s * 0.97 / step) + 1)]


def _log_ticks(top: float) -> list[float]:
    return [10.0**power for power in range(int(math.log10(top)) + 1)]


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"
