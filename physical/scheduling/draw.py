"""A schedule as a picture: a Gantt chart in SVG with units, transfers and idle time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from html import escape

from physical.scheduling.trace import Trace

WIDTH, ROW, LEFT, TOP, RIGHT = 1100, 16, 110, 40, 70
COLOURS = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#e15759",
    "#76b7b2",
    "#edc948",
    "#b07aa1",
    "#9c755f",
    "#ff9da7",
    "#86bcb6",
)
MOVE = "#8a8a8a"
LEAST_PX = 0.4
"""Neighbours of one colour closer than this become one bar."""

Bar = tuple[float, float, str, str]
"""Start, end, colour, tooltip."""


def gantt(trace: Trace, *, title: str | None = None, bound_s: float | None = None) -> str:
    """The SVG text: a row a unit with its busy share, a row a link that carried something, and a time axis.
    `bound_s` draws a line where no schedule could end earlier. Bars tell more when pointed at."""
    problem = trace.problem
    span = max(trace.makespan_s, bound_s or 0.0) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / span
    kernels = list(dict.fromkeys(task.kernel for task in problem.graph.tasks))
    colour = {kernel: COLOURS[i % len(COLOURS)] for i, kernel in enumerate(kernels)}
    rows: list[tuple[str, list[Bar]]] = [(unit.name, []) for unit in problem.machine.units]
    for run in trace.runs:
        task = problem.graph.tasks[run.task]
        told = f"{task.name} ({task.kernel}) {_time(run.start_s)} to {_time(run.end_s)}"
        rows[run.unit][1].append(
            (run.start_s, run.end_s, colour[task.kernel] if run.completed else "#000", told)
        )
    carried: dict[tuple[int, int], list[Bar]] = defaultdict(list)
    for move in trace.moves:
        name = problem.graph.data[problem.version_data[move.version]].name
        told = f"{name}: {problem.machine.nodes[move.source]} to {problem.machine.nodes[move.target]}"
        for used in move.lanes:
            carried[used].append((move.start_s, move.end_s, MOVE, f"{told} {_time(move.start_s)}"))
    units = len(rows)
    for (link, lane), bars in sorted(carried.items()):
        several = (problem.streams[link] or 1) > 1
        rows.append((problem.machine.links[link].name + (f" {lane}" if several else ""), bars))
    height = TOP + ROW * len(rows) + (8 if len(rows) > units else 0) + 50
    heading = (
        title or f"{problem.graph.name} on {problem.machine.name}: {trace.name}, {_time(trace.makespan_s)}"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(heading)}</text>',
    ]
    for number, (name, bars) in enumerate(rows):
        y = TOP + ROW * number + (8 if number >= units else 0)
        parts += _row(name, bars, y, scale, trace.makespan_s)
    bottom = height - 46
    parts += _axis(span, scale, bottom)
    if bound_s is not None:
        x = LEFT + bound_s * scale
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{bottom}" stroke="#c00" stroke-dasharray="4 3"/>'
        )
        parts.append(f'<text x="{x - 3:.1f}" y="{TOP - 8}" text-anchor="end" fill="#c00">lower bound</text>')
    parts += _legend([(kernel, colour[kernel]) for kernel in kernels[:8]], height - 8)
    return "\n".join([*parts, "</svg>", ""])


def _row(name: str, bars: list[Bar], y: int, scale: float, makespan_s: float) -> Iterable[str]:
    busy = sum(end - start for start, end, _, _ in bars)
    share = busy / makespan_s if makespan_s else 0.0
    yield f'<text x="{LEFT - 6}" y="{y + 11}" text-anchor="end">{escape(name)}</text>'
    width = makespan_s * scale
    yield f'<rect x="{LEFT}" y="{y + 1}" width="{width:.1f}" height="{ROW - 2}" fill="#f0f0f0"/>'
    for start, end, colour, told in _merged(bars, LEAST_PX / scale):
        yield (
            f'<rect x="{LEFT + start * scale:.2f}" y="{y + 1}" width="{max(0.2, (end - start) * scale):.2f}" '
            f'height="{ROW - 2}" fill="{colour}"><title>{escape(told)}</title></rect>'
        )
    yield f'<text x="{WIDTH - RIGHT + 6}" y="{y + 11}" fill="#555">{share:.0%}</text>'


def _merged(bars: list[Bar], least_s: float) -> Iterable[Bar]:
    """Bars too thin to tell apart become one."""
    current: Bar | None = None
    count = 1
    for bar in sorted(bars):
        thin = current is not None and bar[2] == current[2] and bar[0] - current[1] < least_s
        if current is not None and thin and bar[1] - bar[0] < 4 * least_s:
            count += 1
            current = (current[0], bar[1], current[2], f"{count} of these")
            continue
        if current is not None:
            yield current
        current, count = bar, 1
    if current is not None:
        yield current


def _axis(span: float, scale: float, y: int) -> Iterable[str]:
    for i in range(11):
        x = LEFT + span * scale * i / 10
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}" stroke="#333"/>'
        yield f'<text x="{x:.1f}" y="{y + 16}" text-anchor="middle">{_time(span * i / 10)}</text>'


def _legend(entries: list[tuple[str, str]], y: int) -> Iterable[str]:
    x = LEFT
    for name, colour in [*entries, ("transfer", MOVE), ("idle", "#f0f0f0")]:
        yield f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colour}"/>'
        yield f'<text x="{x + 14}" y="{y}">{escape(name)}</text>'
        x += 34 + 7 * len(name)


def _time(seconds: float) -> str:
    """Three or four digits with a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds * 1e6:.3g} us" if seconds else "0"
