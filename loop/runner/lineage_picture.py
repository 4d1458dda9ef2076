"""A lineage as a picture: generations from left to right, colour by objective, the champion's path bold.

Policies that were built on have a row of their own; the dead without children stand in a block beside their
parent, a grey dot each with the letter of the reason. Self-contained SVG; follows the reader's light or dark
theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from loop.runner.lineage import Lineage, LineageNode

COLUMN, LEFT, TOP = 196, 44, 138
ROW, SMALL_ROW, DOT, PER_LINE = 42, 17, 15, 11
LABELLED = 90
"""Up to so many policies with rows of their own, all are labelled; beyond, those that matter."""
LETTERS = {
    "worse": "W",
    "overfit": "O",
    "duplicate": "D",
    "static": "S",
    "error": "E",
    "timeout": "T",
    "infeasible": "I",
    "crash": "C",
    "unusable": "U",
    "novelty": "N",
}
STYLE = """
  :root { color-scheme: light dark }
  .page { fill: #fbfbfa } .ink { fill: #24241f } .dim { fill: #75756c } .stripe { fill: #f3f3ef }
  .edge { fill: none; stroke: #b9b9b2; stroke-width: 1.3 } .other { stroke-dasharray: 3 4; opacity: .55 }
  .path { stroke: #15803d; stroke-width: 4 } .dead { fill: #d6d6d0 } .letter { fill: #6b6b64 }
  .ring { stroke: #55554e; stroke-width: 1.2 } .won { stroke: #15803d; stroke-width: 3 } .gone { opacity: .5 }
  .unknown { fill: #fbfbfa; stroke-dasharray: 2 2 }
  text { font-family: ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif }
  @media (prefers-color-scheme: dark) {
    .page { fill: #191a1c } .ink { fill: #ececea } .dim { fill: #a0a29e } .stripe { fill: #1f2123 }
    .edge { stroke: #55585c } .path { stroke: #4ade80 } .dead { fill: #3a3d41 } .letter { fill: #a9aba6 }
    .ring { stroke: #c9cac6 } .won { stroke: #4ade80 } .unknown { fill: #191a1c }
  }
"""
_BETTER, _SAME, _WORSE = (21, 128, 61), (236, 233, 214), (190, 52, 40)


def draw_lineage(lineage: Lineage, title: str) -> str:
    """The whole picture as SVG text."""
    return _Picture(lineage, title).render()


@dataclass(slots=True)
class _Place:
    """A node with a row of its own, and where it stands."""

    node: LineageNode
    depth: int
    above: str
    """Digest of the parent beside whom it stands; empty: it begins a family."""
    children: list[str] = field(default_factory=list)
    dead: list[LineageNode] = field(default_factory=list)
    """Its children that were never built on."""
    height: float = 0.0
    x: float = 0.0
    y: float = 0.0


class _Picture:
    def __init__(self, lineage: Lineage, title: str) -> None:
        self.lineage = lineage
        self.title = title
        self.path = lineage.path
        self.places = _places(lineage)
        self.labelled = _labelled(lineage, self.places, self.path)
        # a few that are far worse must not wash out the colours of the rest
        logs = [math.log(p.node.ratio) for p in self.places.values() if p.node.ratio]
        self.span = max([0.08, *(abs(x) for x in logs if x < 0.3)])
        self.order = self._ordered()
        self.bottom = self._lay_out()
        self.points = {d: (p.x, p.y) for d, p in self.places.items()}
        self.twigs: list[str] = []
        """Edges to blocks of the dead."""

    def render(self) -> str:
        depth = max((p.depth + bool(p.dead) for p in self.places.values()), default=0)
        width = max(LEFT + (depth + 1) * COLUMN + 20, 900)
        height = self.bottom + 24
        dots = [self._block(p) for p in self.places.values() if p.dead]  # first: they say where the dots are
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img" aria-label="{escape(self.title)}">',
            f'<style>{STYLE}</style><rect class="page" width="100%" height="100%"/>',
            *self._columns(depth, height),
            *self._heading(),
            *self._edges(),
            *dots,
            *(self._node(p) for p in self.places.values()),
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    def _ordered(self) -> list[str]:
        """Roots in order: the champion's family first, then the large ones."""
        size: dict[str, int] = {}
        for digest, place in reversed(self.places.items()):
            size[digest] = 1 + len(place.dead) + sum(size[c] for c in place.children)
        for place in self.places.values():
            place.children.sort(key=lambda c: (c not in self.path, self._worth(c)))
        roots = [d for d, p in self.places.items() if not p.above]
        return sorted(roots, key=lambda d: (d not in self.path, -size[d], self._worth(d)))

    def _worth(self, digest: str) -> float:
        ratio = self.places[digest].node.ratio
        return ratio if ratio is not None else math.inf

    def _lay_out(self) -> float:
        """Give every place its x and y; where the picture ends."""
        for digest, place in reversed(self.places.items()):
            block = _block_height(len(place.dead))
            below = sum(self.places[c].height for c in place.children) + block
            place.height = max(below, ROW if digest in self.labelled else SMALL_ROW)
        y = float(TOP)
        todo: list[tuple[str, float]] = []
        for root in self.order:
            todo.append((root, y))
            y += self.places[root].height + 6
        while todo:
            digest, top = todo.pop()
            place = self.places[digest]
            place.x = LEFT + place.depth * COLUMN
            place.y = top + (ROW if digest in self.labelled else SMALL_ROW) / 2
            for child in place.children:
                todo.append((child, top))
                top += self.places[child].height
        return y

    def _columns(self, depth: int, height: float) -> list[str]:
        parts = []
        for i in range(depth + 1):
            x = LEFT + i * COLUMN - 22
            if i % 2:
                parts.append(
                    f'<rect class="stripe" x="{x}" y="{TOP - 26}" width="{COLUMN}" height="{height - TOP + 26:g}"/>'
                )
            label = "begun with" if i == 0 else f"generation {i}"
            parts.append(_text(x + 14, TOP - 10, label, 11, css="dim", weight=600))
        return parts

    def _heading(self) -> list[str]:
        lineage = self.lineage
        best = next((n for n in lineage.nodes if n.digest == lineage.champion), None)
        lived = sum(1 for n in lineage.nodes if not n.death)
        text = f"{len(lineage.nodes)} policies, {lived} of them alive"
        if best is not None:
            text += f"; the bold path leads to {best.name}"
            if best.ratio is not None:
                text += f", {best.ratio:.3f} of {lineage.reference}"
        parts = [_text(22, 34, self.title, 19, weight=700), _text(22, 55, text, 12.5, css="dim")]
        parts += self._scale(22, 70)
        x = 330.0
        for death, count in lineage.deaths().items():
            label = f"{death} {count}"
            parts.append(_dot(x, 80, _letter(death)))
            parts.append(_text(x + 11, 84, label, 11.5, css="dim"))
            x += 34 + 6.4 * len(label)
        return parts

    def _scale(self, x: float, y: float) -> list[str]:
        """What the colours mean."""
        steps = 24
        width = 240 / steps
        parts = []
        for i in range(steps):
            ratio = math.exp(self.span * (2 * i / (steps - 1) - 1))
            parts.append(
                f'<rect x="{x + i * width:g}" y="{y}" width="{width + 0.5:g}" height="10" fill="{self._colour(ratio)}"/>'
            )
        for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
            ratio = math.exp(self.span * (2 * share - 1))
            words = {0.0: " better", 0.5: "", 1.0: " worse"}[share]
            label = f"{ratio:.2f}{words}"
            parts.append(_text(x + 240 * share, y + 24, label, 10.5, css="dim", anchor=anchor))
        return parts

    def _edges(self) -> list[str]:
        """Thin ones first, so that the champion's path lies above."""
        thin: list[str] = []
        bold: list[str] = []
        for digest, place in self.places.items():
            if place.above:
                on_path = digest in self.path and place.above in self.path
                (bold if on_path else thin).append(
                    self._edge(self.points[place.above], (place.x, place.y), "path" if on_path else "")
                )
            for other in place.node.parents:
                if other != place.above and other in self.points:
                    thin.append(self._edge(self.points[other], (place.x, place.y), "other"))
        return [*self.twigs, *thin, *bold]

    def _edge(self, start: tuple[float, float], end: tuple[float, float], css: str) -> str:
        (x1, y1), (x2, y2) = start, end
        # straight up to the last column, then a curve: labels beside the parent stay legible
        bend = max(x1 + 8, x2 - 46)
        middle = (bend + x2) / 2
        return (
            f'<path class="edge {css}" d="M{x1:g} {y1:g} H{bend:g} C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}"/>'
            if x2 > x1
            else f'<path class="edge {css}" d="M{x1:g} {y1:g} Q{x1 + 40:g} {(y1 + y2) / 2:g} {x2:g} {y2:g}"/>'
        )

    def _block(self, place: _Place) -> str:
        """The dead children of a policy, below its living ones."""
        top = place.y - (ROW if place.node.digest in self.labelled else SMALL_ROW) / 2
        top += sum(self.places[c].height for c in place.children)
        x0 = place.x + COLUMN
        y0 = top + (ROW / 2 if not place.children and place.node.digest in self.labelled else 12)
        self.twigs.append(self._edge((place.x, place.y), (x0 - 8, y0), ""))
        parts = []
        for i, node in enumerate(place.dead):
            x, y = x0 + (i % PER_LINE) * DOT, y0 + (i // PER_LINE) * DOT
            self.points[node.digest] = (x, y)
            parts.append(
                f'<g class="n" data-digest="{node.digest}"><title>{escape(_tip(node, self.lineage.reference))}</title>'
                f"{_dot(x, y, _letter(node.death))}</g>"
            )
        return "".join(parts)

    def _node(self, place: _Place) -> str:
        node = place.node
        big = node.digest in self.labelled
        css = ["ring"]
        if node.digest in self.path:
            css.append("won")
        elif node.death:
            css.append("gone")
        fill = f' fill="{self._colour(node.ratio)}"' if node.ratio is not None else ""
        if node.ratio is None:
            css.append("unknown")
        circle = f'<circle class="{" ".join(css)}" cx="{place.x:g}" cy="{place.y:g}" r="{9 if big else 5.5}"{fill}/>'
        text = ""
        if big:
            weight = 700 if node.digest in self.path else 500
            ratio = f"{node.ratio:.3f}" if node.ratio is not None else "no score"
            what = "" if not node.parents else f", {node.operator}"
            text = _text(place.x + 14, place.y - 6, _short(node.name, 22), 11.5, weight=weight)
            text += _text(place.x + 14, place.y + 15, _short(ratio + what, 26), 10.5, css="dim")
        tip = escape(_tip(node, self.lineage.reference))
        return f'<g class="n" data-digest="{node.digest}"><title>{tip}</title>{circle}{text}</g>'

    def _colour(self, ratio: float) -> str:
        share = max(-1.0, min(1.0, math.log(max(ratio, 1e-9)) / self.span))
        end = _WORSE if share > 0 else _BETTER
        mix = [round(a + (b - a) * abs(share) ** 0.8) for a, b in zip(_SAME, end, strict=True)]
        return "#{:02x}{:02x}{:02x}".format(*mix)


def _places(lineage: Lineage) -> dict[str, _Place]:
    """Rows for all that live, were built on, or began a family; the others stand with their parent."""
    used = {parent for node in lineage.nodes for parent in node.parents[:1]} | lineage.path
    places: dict[str, _Place] = {}
    for node in lineage.nodes:
        above = node.parents[0] if node.parents and node.parents[0] in places else ""
        if above and node.death and node.digest not in used:
            places[above].dead.append(node)
            continue
        places[node.digest] = _Place(node, places[above].depth + 1 if above else 0, above)
        if above:
            places[above].children.append(node.digest)
    for place in places.values():
        place.dead.sort(key=lambda n: (list(LETTERS).index(n.death) if n.death in LETTERS else 99, n.digest))
    return places


def _labelled(lineage: Lineage, places: dict[str, _Place], path: frozenset[str]) -> set[str]:
    if len(places) <= LABELLED:
        return set(places)
    scored = [d for d, p in places.items() if p.node.ratio is not None and not p.node.death]
    best = sorted(scored, key=lambda d: places[d].node.ratio or 0.0)[:24]
    return {*path, *best, *(d for d, p in places.items() if not p.above)} | {
        n.digest for n in lineage.nodes if n.promoted and n.digest in places
    }


def _block_height(count: int) -> float:
    return -(-count // PER_LINE) * DOT + 12.0 if count else 0.0


def _tip(node: LineageNode, reference: str) -> str:
    """What hovering tells."""
    lines = [f"{node.name} ({node.digest}), {node.operator}"]
    if node.ratio is not None:
        lines.append(f"{node.ratio:.3f} of {reference} in the {node.stage} stage")
    if node.death:
        lines.append(f"{node.death}: {node.detail}")
    elif node.promoted:
        lines.append("promoted")
    if node.note:
        lines.append(node.note)
    return "\n".join(lines)[:900]


def _letter(death: str) -> str:
    return LETTERS.get(death, death[:1].upper() or "?")


def _dot(x: float, y: float, letter: str) -> str:
    return (
        f'<circle class="dead" cx="{x:g}" cy="{y:g}" r="6.5"/>'
        f'<text class="letter" x="{x:g}" y="{y + 3:g}" font-size="8.5" text-anchor="middle">{escape(letter)}</text>'
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(
    x: float, y: float, text: str, size: float, *, css: str = "ink", anchor: str = "start", weight: int = 400
) -> str:
    return (
        f'<text class="{css}" x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def summary(lineage: Lineage) -> Sequence[LineageNode]:
    """The champion's path, the oldest first."""
    path = lineage.path
    return [n for n in lineage.nodes if n.digest in path]
