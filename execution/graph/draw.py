"""A graph as one SVG: operations in layers with their modules around them, and beneath what lives in memory when.

Colour is the class of operation, the bar in a node its share of the time of all by the roofline, and its width grows
with that; every node, edge of memory and buffer has a tooltip. The strip beneath follows the order of execution: live bytes
at each node, and the largest buffers from birth to death. Weights are told in tooltips, not drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Final

from execution.graph.cost import Peaks, base_name, roofline_s
from execution.graph.form import Graph
from execution.graph.layout import Box, Item, Layout, lay_out
from execution.graph.liveness import Span, Step, spans, steps
from execution.graph.node import GETITEM, HOLDERS, Node, tensors_of
from execution.graph.palette import CLASSES, class_of
from execution.graph.text import node_text, value_text

MARGIN: Final = 24.0
HEADER: Final = 74.0
STRIP: Final = 130.0
BAR: Final = 7.0
BUFFERS: Final = 36
"""Largest buffers that the strip shows one by one."""
PLAUSIBLE: Final = Peaks(5e10, 1e10)
"""For pictures made without measuring the machine: what a core of today does, roughly."""


@dataclass(frozen=True, slots=True)
class _Figures:
    """What the picture tells about each node."""

    seconds: Mapping[str, float]
    live: Mapping[str, Step]

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values()) or 1.0


def svg_of(graph: Graph, peaks: Peaks = PLAUSIBLE) -> str:
    """The picture; node times by the roofline of these peaks."""
    told = steps(graph)
    figures = _Figures(
        {node.name: roofline_s(graph.cost(node.name), peaks) for node in graph.calls},
        {step.name: step for step in told},
    )
    labels = _labels(graph)
    items = [_item(graph, node, figures, labels[node.name]) for node in graph if node.kind not in HOLDERS]
    layout = lay_out(items)
    width = max(layout.width, 760.0) + 2 * MARGIN
    largest = sorted(spans(graph), key=lambda span: (-span.bytes, span.first))[:BUFFERS]
    strip = STRIP + BAR * len(largest) + 40
    height = HEADER + layout.height + strip + 3 * MARGIN
    left = (width - layout.width) / 2
    body = [
        *_header(graph, figures, told, width),
        f'<g transform="translate({left:.1f},{HEADER + MARGIN:.1f})">',
        *_modules(layout),
        *_edges(graph, layout),
        *(
            _node(graph, node, layout.nodes[node.name], figures, labels[node.name])
            for node in graph
            if node.kind not in HOLDERS
        ),
        "</g>",
        f'<g transform="translate({MARGIN:.1f},{HEADER + layout.height + 2 * MARGIN:.1f})">',
        *_strip(graph, told, sorted(largest, key=lambda span: span.first), width - 2 * MARGIN),
        "</g>",
    ]
    return _page(width, height, body)


def bytes_text(count: float) -> str:
    """`3.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return ""


def flops_text(count: float) -> str:
    """`3.2 MFLOP`."""
    for unit in ("", "k", "M", "G", "T"):
        if count < 1000 or unit == "T":
            return f"{count:.0f} {unit}FLOP" if count >= 100 or not unit else f"{count:.1f} {unit}FLOP"
        count /= 1000
    return ""


def _item(graph: Graph, node: Node, figures: _Figures, label: str) -> Item:
    share = figures.seconds.get(node.name, 0.0) / figures.total_s
    small = class_of(node).name == "view"
    letters = max(len(label), 0 if small else len(_shape(node)) * 0.85)
    width = 16 + 6.3 * letters + (0 if small else 70 * math.sqrt(share))
    before = tuple(name for name in graph.dependencies[node.name] if graph[name].kind not in HOLDERS)
    return Item(node.name, node.scope, max(width, 44.0), 16.0 if small else 34.0, before)


def _labels(graph: Graph) -> dict[str, str]:
    """Names of operations; with the module's where it is the only one in it, since it has no frame then."""
    counts: Counter[str] = Counter()
    for node in graph.calls:
        parts = node.scope.split(".")
        counts.update(".".join(parts[: depth + 1]) for depth in range(len(parts)))
    found = {}
    for node in graph:
        last = node.scope.rpartition(".")[2]
        alone = node.kind == "call" and last and counts[node.scope] == 1 and class_of(node).name != "view"
        found[node.name] = f"{last}: {_label(node)}" if alone else _label(node)
    return found


def _label(node: Node) -> str:
    if node.kind == "input":
        return node.target or node.name
    if node.kind == "output":
        return "results"
    if node.op == GETITEM:
        return f"[{node.args[1]}]"
    name = base_name(node.op)
    return f"{name}_" if node.writes else name


def _shape(node: Node) -> str:
    tensors = tensors_of(node.value)
    if not tensors:
        return value_text(node.value) if node.value is not None else ""
    first = "\u00d7".join(str(dim) for dim in tensors[0].shape) or "scalar"
    return f"{first}{f' +{len(tensors) - 1}' if len(tensors) > 1 else ''}"


def _page(width: float, height: float, body: Iterable[str]) -> str:
    style = (
        "text{font-family:ui-sans-serif,Helvetica,Arial,sans-serif;font-size:11px;fill:#22222a}"
        ".s{font-size:9px;fill:#5b5b66}.m{font-size:9px;fill:#8a8a96}.h{font-size:16px;font-weight:600}"
        ".e{fill:none;stroke:#8d8d99;stroke-width:1;opacity:.65}.k{stroke-dasharray:3 3;stroke:#b8364a}"
        "g.n:hover rect{stroke-width:2.4}"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}">'
    )
    ground = f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>'
    return "\n".join([head, f"<style>{style}</style>", ground, *body, "</svg>"]) + "\n"


def _header(graph: Graph, figures: _Figures, told: tuple[Step, ...], width: float) -> Iterator[str]:
    total = graph.total_cost()
    weights = sum(graph.value_bytes(node.name) for node in graph.holders)
    peak = max(step.live_bytes for step in told)
    facts = [
        f"{len(graph.calls)} operations",
        flops_text(total.flops),
        f"{bytes_text(total.bytes)} moved",
        f"{bytes_text(weights)} of weights",
        f"peak {bytes_text(peak)}",
        *(f"{symbol.name} = {symbol.example}" for symbol in graph.symbols),
    ]
    yield f'<text x="{MARGIN}" y="28" class="h">{escape(graph.name)}</text>'
    yield f'<text x="{MARGIN}" y="46">{escape("   ·   ".join(facts))}</text>'
    shares: dict[str, float] = {}
    counts: dict[str, int] = {}
    for node in graph.calls:
        name = class_of(node).name
        counts[name] = counts.get(name, 0) + 1
        shares[name] = shares.get(name, 0.0) + figures.seconds[node.name] / figures.total_s
    x = MARGIN
    for name, made in CLASSES.items():
        if name not in counts:
            continue
        text = f"{name} {counts[name]}" + (f", {shares[name]:.0%}" if shares[name] >= 0.005 else "")
        if x + 30 + 5.4 * len(text) > width:
            break
        yield f'<rect x="{x:.1f}" y="56" width="11" height="11" rx="2" fill="{made.fill}" stroke="{made.edge}"/>'
        yield f'<text x="{x + 15:.1f}" y="65" class="s">{escape(text)}</text>'
        x += 32 + 5.0 * len(text)


def _modules(layout: Layout) -> Iterator[str]:
    for index, box in enumerate(layout.modules):
        shade = "#fafafc" if index % 2 else "#f4f5f9"
        yield (
            f'<g><title>{escape(box.name)}</title><rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" '
            f'height="{box.height:.1f}" rx="6" fill="{shade}" stroke="#d5d7e0"/>'
            f'<text x="{box.x + 7:.1f}" y="{box.y + 11:.1f}" class="m">{escape(_fitting(box))}</text></g>'
        )


def _fitting(box: Box) -> str:
    """As much of a module's path as its frame has room for: the end says most."""
    room = int((box.width - 10) / 4.8)
    if len(box.name) <= room:
        return box.name
    last = box.name.rpartition(".")[2]
    return last if len(last) <= room else last[: max(room - 1, 1)]


def _edges(graph: Graph, layout: Layout) -> Iterator[str]:
    for name, before in graph.dependencies.items():
        if name not in layout.nodes:
            continue
        for source, kind in before.items():
            if source not in layout.nodes or (kind != "data" and name == graph.output.name):
                continue
            start, end = layout.nodes[source], layout.nodes[name]
            x1, y1 = start.x + start.width / 2, start.y + start.height
            x2, y2 = end.x + end.width / 2, end.y
            bend = max(10.0, min(60.0, abs(y2 - y1) / 2))
            # past nodes that stand between: in a bow around them
            bow = min(170.0, 60.0 + 0.25 * (y2 - y1)) if y2 - y1 > 70 and abs(x2 - x1) < 40 else 0.0
            told = f"<title>{escape(source)} before {escape(name)}: {kind}</title>" if kind != "data" else ""
            style = "e" if kind == "data" else "e k"
            near, far = f"{x1 + bow:.1f} {y1 + bend:.1f}", f"{x2 + bow:.1f} {y2 - bend:.1f}"
            path = f"M{x1:.1f} {y1:.1f}C{near} {far} {x2:.1f} {y2:.1f}"
            yield (
                f'<path class="{style}" d="{path}">{told}</path>'
                if told
                else f'<path class="{style}" d="{path}"/>'
            )


def _node(graph: Graph, node: Node, box: Box, figures: _Figures, label: str) -> str:
    made = class_of(node)
    middle = box.x + box.width / 2
    parts = [f"<title>{escape(_tooltip(graph, node, figures))}</title>"]
    round_ = 8 if made.name in ("view", "interface") else 4
    parts.append(
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{round_}" '
        f'fill="{made.fill}" stroke="{made.edge}"/>'
    )
    if made.name == "view":
        parts.append(
            f'<text x="{middle:.1f}" y="{box.y + 11.5:.1f}" text-anchor="middle" class="s">{escape(label)}</text>'
        )
        return f'<g class="n">{"".join(parts)}</g>'
    share = figures.seconds.get(node.name, 0.0) / figures.total_s
    if share >= 0.002:
        heat = (box.width - 4) * share / max(figures.seconds.values(), default=1.0) * figures.total_s
        parts.append(
            f'<rect x="{box.x + 2:.1f}" y="{box.y + box.height - 4.5:.1f}" width="{heat:.1f}" height="3" rx="1.5" '
            f'fill="{_heat(share)}"/>'
        )
    shape = _shape(node)
    down = 14.0 if shape else 21.0
    parts.append(f'<text x="{middle:.1f}" y="{box.y + down:.1f}" text-anchor="middle">{escape(label)}</text>')
    if shape:
        parts.append(
            f'<text x="{middle:.1f}" y="{box.y + 26:.1f}" text-anchor="middle" class="s">{escape(shape)}</text>'
        )
    return f'<g class="n">{"".join(parts)}</g>'


def _heat(share: float) -> str:
    """From amber to red."""
    level = min(math.sqrt(share) * 1.6, 1.0)
    return f"rgb({int(236 - 40 * level)},{int(172 - 130 * level)},{int(60 - 10 * level)})"


def _tooltip(graph: Graph, node: Node, figures: _Figures) -> str:
    lines = [node_text(node)]
    if node.kind == "call":
        cost, step = graph.cost(node.name), figures.live[node.name]
        seconds = figures.seconds[node.name]
        lines.append(
            f"{flops_text(cost.flops)}, {bytes_text(cost.bytes_read)} read, {bytes_text(cost.bytes_written)} written"
        )
        lines.append(f"{seconds * 1e6:.1f} us at least ({seconds / figures.total_s:.1%} of all)")
        lines.append(f"{bytes_text(step.live_bytes)} live, {bytes_text(step.freed_bytes)} freed after it")
    held = [
        f"{graph[name].target} {value_text(graph[name].value)}"
        for name in node.refs()
        if graph[name].kind in HOLDERS
    ]
    lines += [f"weight {text}" for text in held[:8]]
    if node.inner is not None:
        lines += [f"  {node_text(inner, scopes=False)}" for inner in node.inner.calls[:24]]
    return "\n".join(lines)


def _strip(graph: Graph, told: tuple[Step, ...], largest: list[Span], width: float) -> Iterator[str]:
    """Live bytes over the order of execution, and the largest buffers beneath."""
    calls = [place for place, step in enumerate(told) if graph[step.name].kind == "call"]
    at = {place: index for index, place in enumerate(calls)}
    unit = width / max(len(calls), 1)
    peak = max((told[place].live_bytes for place in calls), default=0)
    yield f'<text x="0" y="-6">live memory in the order of execution (peak {escape(bytes_text(peak))})</text>'
    yield f'<rect x="0" y="0" width="{width:.1f}" height="{STRIP:.1f}" fill="#fafafc" stroke="#d5d7e0"/>'
    for place in calls:
        step = told[place]
        tall = (STRIP - 6) * step.live_bytes / peak if peak else 0.0
        fill = "#d8574a" if step.live_bytes == peak else "#9db8e6"
        title = f"{step.name} ({graph[step.name].op}): {bytes_text(step.live_bytes)} live"
        yield (
            f'<rect x="{at[place] * unit:.2f}" y="{STRIP - tall:.1f}" width="{max(unit - 0.4, 0.4):.2f}" '
            f'height="{tall:.1f}" fill="{fill}"><title>{escape(title)}</title></rect>'
        )
    if largest:
        more = f"largest {len(largest)} buffers" if len(largest) == BUFFERS else f"{len(largest)} buffers"
        yield f'<text x="0" y="{STRIP + 16:.1f}" class="s">{more}, from birth to death</text>'
    biggest = max((span.bytes for span in largest), default=1) or 1
    for row, span in enumerate(largest):
        first = at.get(span.first, 0)
        last = max((index for place, index in at.items() if place <= span.last), default=first)
        y = STRIP + 22 + row * BAR
        maker = span.buffer.partition("#")[0]
        title = f"{span.buffer}: {bytes_text(span.bytes)}, from {span.first} to {span.last}"
        strength = 0.35 + 0.65 * span.bytes / biggest
        yield (
            f'<rect x="{first * unit:.2f}" y="{y:.1f}" width="{max((last - first + 1) * unit, 1.5):.2f}" '
            f'height="{BAR - 1.5:.1f}" rx="1" fill="{class_of(graph[maker]).edge}" opacity="{strength:.2f}">'
            f"<title>{escape(title)}</title></rect>"
        )
