"""Lines over time as SVG, to stand in a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1000, 300, 66, 16, 16, 58
STYLE = """
  .ink { fill: #24241f } .dim { fill: #75756c } .grid { stroke: #dcdcd6 }
  text { font-family: ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif }
  @media (prefers-color-scheme: dark) {
    .ink { fill: #ececea } .dim { fill: #a0a29e } .grid { stroke: #3a3d41 }
  }
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One value over time; None: a gap."""

    name: str
    values: Sequence[float | None]
    colour: str
    dashed: bool = False


def draw(title: str, at_s: Sequence[float], lines: Sequence[Line], *, unit: str, log: bool = False) -> str:
    """The picture as SVG text; `at_s` are the starts of equal stretches. `log`: decades, for latencies."""
    known = [v for line in lines for v in line.values if v is not None and (v > 0.0 or not log)]
    scale = _Scale(known, log=log)
    width_s = at_s[1] - at_s[0] if len(at_s) > 1 else 1.0
    end_s = (at_s[-1] + width_s) if at_s else 1.0

    def x_of(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / end_s

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><style>{STYLE}</style>'
    ]
    for value in scale.ticks:
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        label = f"{value:,.4g}{' ' + unit if unit else ''}"
        parts.append(_text(LEFT - 8, y + 4, label, css="dim", anchor="end"))
    for i in range(7):
        seconds = end_s * i / 6
        parts.append(
            _text(x_of(seconds), HEIGHT - BOTTOM + 18, f"{seconds:,.3g} s", css="dim", anchor="middle")
        )
    legend_x = float(LEFT)
    for line in lines:
        parts += _path(line, [x_of(s + width_s / 2) for s in at_s], scale)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(
            f'<line x1="{legend_x:g}" x2="{legend_x + 18:g}" y1="{HEIGHT - 14}" y2="{HEIGHT - 14}" '
            f'stroke="{line.colour}" stroke-width="2.5"{dash}/>'
        )
        parts.append(_text(legend_x + 24, HEIGHT - 10, line.name))
        legend_x += 50 + 7.2 * len(line.name)
    return "\n".join([*parts, "</svg>"])


class _Scale:
    """Values to heights."""

    def __init__(self, values: Sequence[float], *, log: bool) -> None:
        self._log = log and bool(values)
        if self._log:
            self._low = 10.0 ** math.floor(math.log10(min(values)))
            self._high = max(10.0 ** math.ceil(math.log10(max(values))), self._low * 10.0)
            decades = round(math.log10(self._high / self._low))
            self.ticks = [self._low * 10.0**i for i in range(decades + 1)]
        else:
            self._low, self._high = 0.0, _round_up(max(values, default=1.0) or 1.0)
            self.ticks = [self._high * i / 4 for i in range(5)]

    def y(self, value: float) -> float:
        share = (
            math.log(max(value, self._low) / self._low) / math.log(self._high / self._low)
            if self._log
            else value / self._high
        )
        return TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - share)


def _path(line: Line, xs: Sequence[float], scale: _Scale) -> list[str]:
    """Polylines between gaps; a point alone is a dot."""
    parts: list[str] = []
    run: list[tuple[float, float]] = []
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    for x, value in [*zip(xs, line.values, strict=True), (0.0, None)]:
        if value is not None:
            run.append((x, scale.y(value)))
            continue
        if len(run) == 1:
            parts.append(f'<circle cx="{run[0][0]:.1f}" cy="{run[0][1]:.1f}" r="2" fill="{line.colour}"/>')
        elif run:
            points = " ".join(f"{px:.1f},{py:.1f}" for px, py in run)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}/>'
            )
        run = []
    return parts


def _round_up(value: float) -> float:
    magnitude = 10 ** math.floor(math.log10(value))
    return float(
        next(m * magnitude for m in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 5, 6, 8, 10) if m * magnitude >= value)
    )


def _text(x: float, y: float, text: str, *, css: str = "ink", anchor: str = "start") -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" font-size="11.5" text-anchor="{anchor}">{escape(text)}</text>'
