"""Policies window by window as a picture: a line a policy, and below it what each window asked for.

Self-contained SVG; follows the reader's light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from loop.runner.results import WindowInfo

WIDTH, LEFT, RIGHT, TOP = 1000, 70, 24, 96
HEIGHT, LOAD_HEIGHT, GAP = 320, 70, 46
COLOURS = ("#16a34a", "#4c78a8", "#e4812f", "#b65fa5", "#c9a227", "#7a6fd0", "#d1495b", "#5b8e9c", "#8c6d4f")
STYLE = """
  :root { color-scheme: light dark }
  .page { fill: #fbfbfa } .ink { fill: #24241f } .dim { fill: #75756c } .grid { stroke: #dcdcd6 }
  .load { fill: #b9bdc4 } .event { stroke: #c2410c; stroke-dasharray: 4 4 } .happened { fill: #c2410c }
  text { font-family: ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif }
  @media (prefers-color-scheme: dark) {
    .page { fill: #191a1c } .ink { fill: #ececea } .dim { fill: #a0a29e } .grid { stroke: #3a3d41 }
    .load { fill: #55595f } .event { stroke: #fb923c } .happened { fill: #fb923c }
  }
"""


@dataclass(frozen=True, slots=True)
class Series:
    """One policy's value in each window; lower is better."""

    name: str
    values: tuple[float, ...]


def draw_windows(
    title: str, windows: Sequence[WindowInfo], series: Sequence[Series], *, unit: str = ""
) -> str:
    """The whole picture as SVG text."""
    top = _round_up(max((v for line in series for v in line.values), default=1.0) or 1.0)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(windows))
    load_top = TOP + HEIGHT + GAP
    legend, legend_height = _legend(series, load_top + LOAD_HEIGHT + 48)
    height = load_top + LOAD_HEIGHT + 48 + legend_height + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
        f'height="{height:g}" role="img" aria-label="{escape(title)}">',
        f'<style>{STYLE}</style><rect class="page" width="100%" height="100%"/>',
        _text(LEFT - 40, 36, title, 18, weight=700),
        _text(LEFT - 40, 56, "Lower is better. Marks show what happened to the hardware.", 12, css="dim"),
        *_axis(top, unit),
        *_load(windows, step, load_top),
        *_events(windows, step),
        *(_line(line, step, top, COLOURS[i % len(COLOURS)]) for i, line in enumerate(series)),
        *legend,
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axis(top: float, unit: str) -> list[str]:
    parts = []
    for i in range(5):
        value = top * i / 4
        y = TOP + HEIGHT * (1 - i / 4)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:g}" y2="{y:g}"/>')
        label = f"{value:,.4g}{' ' + unit if unit else ''}"
        parts.append(_text(LEFT - 8, y + 4, label, 11, css="dim", anchor="end"))
    return parts


def _load(windows: Sequence[WindowInfo], step: float, y: float) -> list[str]:
    most = max((w.requests for w in windows), default=1) or 1
    every = max(1, math.ceil(len(windows) / 24))
    parts = [_text(LEFT, y - 8, f"requests of each window, at most {most:,}", 11, css="dim")]
    for i, w in enumerate(windows):
        bar = LOAD_HEIGHT * w.requests / most
        tip = f"window {w.index}: {w.requests:,} requests, {w.input_tokens_mean:,.0f} in, {w.output_tokens_mean:,.0f} out"
        parts.append(
            f'<rect class="load" x="{LEFT + i * step + step * 0.1:.1f}" y="{y + LOAD_HEIGHT - bar:.1f}" '
            f'width="{step * 0.8:.1f}" height="{bar:.1f}"><title>{escape(tip)}</title></rect>'
        )
        if i % every == 0:
            x = LEFT + (i + 0.5) * step
            parts.append(_text(x, y + LOAD_HEIGHT + 16, str(w.index), 11, css="dim", anchor="middle"))
    return parts


def _events(windows: Sequence[WindowInfo], step: float) -> list[str]:
    parts = []
    last_x, level = -1e9, 0
    for i, w in enumerate(windows):
        if not w.events:
            continue
        x = LEFT + (i + 0.5) * step
        level = (level + 1) % 3 if x - last_x < 130 else 0  # labels that lie close are staggered
        last_x = x
        parts.append(
            f'<line class="event" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{TOP + HEIGHT}"/>'
            + _text(x + 4, TOP - 6 + 13 * level, ", ".join(w.events)[:40], 10.5, css="happened")
        )
    return parts


def _line(line: Series, step: float, top: float, colour: str) -> str:
    points = [(LEFT + (i + 0.5) * step, TOP + HEIGHT * (1 - v / top)) for i, v in enumerate(line.values)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    radius = 3 if len(points) <= 60 else 1.5
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}">'
        f"<title>{escape(line.name)}, window {i}: {v:,.4g}</title></circle>"
        for i, ((x, y), v) in enumerate(zip(points, line.values, strict=True))
    )
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'


def _legend(series: Sequence[Series], y: float) -> tuple[list[str], float]:
    """Names with totals, as many in a line as there is room; and the height of it all."""
    parts, x, row = [], float(LEFT), 0
    for i, line in enumerate(series):
        label = f"{line.name} ({sum(line.values):,.1f} in all)"
        width = 30 + 7.2 * len(label)
        if x > LEFT and x + width > WIDTH - RIGHT:
            x, row = float(LEFT), row + 1
        colour = COLOURS[i % len(COLOURS)]
        parts.append(
            f'<rect x="{x:g}" y="{y + 22 * row - 10:g}" width="14" height="5" rx="2" fill="{colour}"/>'
        )
        parts.append(_text(x + 20, y + 22 * row - 3, label, 12))
        x += width
    return parts, 22.0 * (row + 1)


def _round_up(value: float) -> float:
    """The next number of one or two digits that reads well."""
    magnitude = 10 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(m * magnitude for m in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 5, 6, 8, 10) if m * magnitude >= value)


def _text(
    x: float, y: float, text: str, size: float, *, css: str = "ink", anchor: str = "start", weight: int = 400
) -> str:
    return (
        f'<text class="{css}" x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )
