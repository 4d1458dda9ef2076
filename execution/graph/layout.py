"""Where nodes stand in a picture: layers from top to bottom, modules as boxes inside boxes.

Sugiyama's scheme (Sugiyama et al., 1981), applied to each module by itself: the parts of a module are layered by their
longest path, ordered in each layer by the mean place of their neighbours, and packed; the module is then one part of the
module around it. A module whose operations do not lie together (one that is called twice) becomes several boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

GAP_X: Final = 14.0
GAP_Y: Final = 22.0
PADDING: Final = 10.0
TITLE: Final = 14.0
ROW_WIDTH: Final = 2400.0
"""A layer that is wider goes on in a second row."""


@dataclass(frozen=True, slots=True)
class Item:
    """One node to place."""

    name: str
    scope: str
    width: float
    height: float
    before: tuple[str, ...]
    """What it takes; names that are not placed are left out."""


@dataclass(frozen=True, slots=True)
class Box:
    """A module's frame, or a node's."""

    name: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything placed."""

    nodes: Mapping[str, Box]
    modules: tuple[Box, ...]
    """Outer ones first."""
    width: float
    height: float


@dataclass
class _Part:
    """A node, or a module with what is in it; x and y from the corner of what it is in."""

    name: str
    width: float = 0.0
    height: float = 0.0
    x: float = 0.0
    y: float = 0.0
    parts: list[_Part] = field(default_factory=list)
    members: list[str] = field(default_factory=list)


def lay_out(items: Sequence[Item]) -> Layout:
    """Places of all items, which come in an order that respects `before`."""
    known = {item.name: item for item in items}
    root = _module("", list(items), known)
    nodes: dict[str, Box] = {}
    modules: list[Box] = []
    _flatten(root, (0.0, 0.0), nodes, modules)
    return Layout(nodes, tuple(modules[1:]), root.width, root.height)


def _module(path: str, items: list[Item], known: Mapping[str, Item]) -> _Part:
    """A module's parts, placed."""
    part = _Part(path, members=[item.name for item in items])
    for group, members in _grouped(path, items):
        if len(members) == 1:  # alone in its module: no frame
            item = members[0]
            part.parts.append(_Part(item.name, item.width, item.height, members=[item.name]))
        else:
            part.parts.append(_module(group, members, known))
    _place(part, known)
    return part


def _grouped(path: str, items: list[Item]) -> list[tuple[str, list[Item]]]:
    """Items of a module by the submodule that they are in; one by one where they are in none."""
    groups: list[tuple[str, list[Item]]] = []
    open_group: dict[str, int] = {}
    home: dict[str, int] = {}
    reach: list[set[int]] = []  # groups that come before each group
    for item in items:
        child = _child(path, item.scope)
        sources = {home[name] for name in item.before if name in home}
        index = open_group.get(child, -1) if child else -1
        others = sources - {index}
        if index < 0 or any(index in reach[other] for other in others):
            index = len(groups)
            groups.append((child or path, []))
            reach.append(set())
            if child:
                open_group[child] = index
        groups[index][1].append(item)
        home[item.name] = index
        new = others.union(*(reach[other] for other in others))
        if not new <= reach[index]:
            for later in range(len(groups)):
                if later == index or index in reach[later]:
                    reach[later] |= new
    return groups


def _child(path: str, scope: str) -> str:
    """The submodule of `path` that `scope` is in; empty when it is `path` itself or elsewhere."""
    prefix = f"{path}." if path else ""
    if not scope or scope == path or not scope.startswith(prefix):
        return ""
    return prefix + scope[len(prefix) :].split(".", maxsplit=1)[0]


def _place(part: _Part, known: Mapping[str, Item]) -> None:
    """Layers, their order, and coordinates."""
    home = {name: child for child in part.parts for name in child.members}
    names = {id(child): f"{index}" for index, child in enumerate(part.parts)}
    before: dict[str, set[str]] = {names[id(child)]: set() for child in part.parts}
    for child in part.parts:
        for name in child.members:
            for source in known[name].before:
                other = home.get(source)
                if other is not None and other is not child:
                    before[names[id(child)]].add(names[id(other)])
    by_name = {names[id(child)]: child for child in part.parts}
    layers = _ordered(_layers(before), before)
    top = 0.0 if not part.name else TITLE
    edge = 0.0 if not part.name else PADDING
    rows = [row for layer in layers for row in _rows([by_name[name] for name in layer])]
    inner = max((_row_width(row) for row in rows), default=0.0)
    y = top + edge
    for row in rows:
        x = edge + (inner - _row_width(row)) / 2
        height = max(child.height for child in row)
        for child in row:
            child.x, child.y = x, y + (height - child.height) / 2
            x += child.width + GAP_X
        y += height + GAP_Y
    part.width = inner + 2 * edge
    part.height = y - (GAP_Y if rows else 0.0) + edge


def _layers(before: Mapping[str, set[str]]) -> list[list[str]]:
    """By longest path, then each as late as its users allow when it takes nothing: inputs stand near their use."""
    rank: dict[str, int] = {}
    remaining = dict(before)
    while remaining:
        ready = [name for name, sources in remaining.items() if sources <= rank.keys()]
        ready = ready or [next(iter(remaining))]  # a circle cannot be: draw it all the same
        for name in ready:
            rank[name] = 1 + max((rank[source] for source in remaining[name] if source in rank), default=-1)
        for name in ready:
            del remaining[name]
    users: dict[str, list[str]] = {name: [] for name in before}
    for name, sources in before.items():
        for source in sources:
            users[source].append(name)
    for name, sources in before.items():
        if not sources and users[name]:
            rank[name] = min(rank[user] for user in users[name]) - 1
    layers: list[list[str]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for name in before:
        layers[rank[name]].append(name)
    return [layer for layer in layers if layer]


def _ordered(layers: list[list[str]], before: Mapping[str, set[str]]) -> list[list[str]]:
    """Each layer ordered by the mean place of its neighbours, swept down and up."""
    after: dict[str, set[str]] = {name: set() for name in before}
    for name, sources in before.items():
        for source in sources:
            after[source].add(name)
    place: dict[str, float] = {}
    for layer in layers:
        _number(layer, place)
    for sweep in range(6):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            near = before if down else after
            keys = {name: _mean([place[other] for other in near[name]], place[name]) for name in layer}
            layer.sort(key=keys.__getitem__)
            _number(layer, place)
    return layers


def _number(layer: list[str], place: dict[str, float]) -> None:
    for index, name in enumerate(layer):
        place[name] = (index + 0.5) / len(layer)


def _mean(places: list[float], default: float) -> float:
    return sum(places) / len(places) if places else default


def _rows(parts: list[_Part]) -> list[list[_Part]]:
    """A layer in rows of at most ROW_WIDTH."""
    rows: list[list[_Part]] = [[]]
    for part in parts:
        if rows[-1] and _row_width([*rows[-1], part]) > ROW_WIDTH:
            rows.append([])
        rows[-1].append(part)
    return rows


def _row_width(parts: Sequence[_Part]) -> float:
    return sum(part.width for part in parts) + GAP_X * (len(parts) - 1)


def _flatten(part: _Part, corner: tuple[float, float], nodes: dict[str, Box], modules: list[Box]) -> None:
    box = Box(part.name, corner[0] + part.x, corner[1] + part.y, part.width, part.height)
    if not part.parts:
        nodes[part.name] = box
        return
    modules.append(box)
    for child in part.parts:
        _flatten(child, (box.x, box.y), nodes, modules)
