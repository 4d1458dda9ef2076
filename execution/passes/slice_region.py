"""A region of a graph run slice by slice: what each slice needs, and the operations that it takes.

    region = Region.of(graph, track, names)          # consecutive operations, all of which can be cut
    region.run(maker, slices=4)                      # on any `Maker`: a graph in the making, tensors, or a count of bytes

What the region takes from outside stays whole, what it gives to the outside is allocated whole and filled slice by
slice; everything between lives for one slice only. Rows that two slices need are computed twice (the halo of
convolutions). So do patch-based inference on small devices (Lin et al., MCUNetV2, 2021) and fused-layer accelerators
(Alwani et al., 2016).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from execution.graph.form import Graph
from execution.graph.node import Node, TensorValue
from execution.passes.slice_rules import (
    HALO_OPS,
    Pointwise,
    Reach,
    Scale,
    Span,
    Track,
    cut_refs,
    length_of,
    with_rows,
    without_padding,
)


class Maker(Protocol):
    """Makes the operations of slices. What it gives stands for a value and is given back to it."""

    def whole(self, name: str, /) -> Any:
        """A value from outside the region."""
        ...

    def narrow(self, value: Any, axis: int, start: int, length: int, /) -> Any:
        """Some rows of a value."""
        ...

    def contiguous(self, value: Any, /) -> Any:
        """A copy of it."""
        ...

    def call(self, node: Node, args: tuple[Any, ...], env: Mapping[str, Any], rows: int, /) -> Any:
        """The node's operation with these arguments, `env` in place of references; its value has so many rows."""
        ...

    def room(self, node: Node, /) -> Any:
        """Memory for a whole value of the region."""
        ...

    def put(self, room: Any, axis: int, start: int, value: Any, length: int, /) -> None:
        """Copy rows into their place."""
        ...

    def done(self, name: str, room: Any, /) -> None:
        """The room is full, and stands for the value from now on."""
        ...

    def piece(self, name: str, axis: int, value: Any, held: Span, needed: Span, /) -> Any:
        """A slice of a value was made: it has the rows `held`, of which those `needed` are right. What is given back
        is used further."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a value."""

    value: Any
    rows: Span


@dataclass(frozen=True, slots=True)
class Region:
    """Operations that are cut together."""

    graph: Graph
    track: Track
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    """What others take of it."""

    @staticmethod
    def of(graph: Graph, track: Track, names: Sequence[str]) -> Region | None:
        """None where an operation cannot be cut, or where more than one tensor would be handed on."""
        inside = set(names)
        nodes = tuple(graph[name] for name in names)
        if any(node.name not in track.rules for node in nodes):
            return None
        results = set(graph.output.refs())
        outputs = tuple(
            n.name
            for n in nodes
            if n.name in results or any(user not in inside for user in graph.users[n.name])
        )
        if not outputs or not all(isinstance(graph[name].value, TensorValue) for name in outputs):
            return None
        return Region(graph, track, nodes, outputs)

    def most_slices(self) -> int:
        """No output can be cut finer."""
        return min(length_of(self.graph, name, self.track.axis[name]) for name in self.outputs)

    def needs(self, slice_: int, slices: int) -> dict[str, Span]:
        """Rows of each value, the region's own and those from outside, that a slice of the outputs needs."""
        axis, graph = self.track.axis, self.graph
        found: dict[str, Span] = {}
        for name in self.outputs:
            length = length_of(graph, name, axis[name])
            found[name] = (slice_ * length // slices, (slice_ + 1) * length // slices)
        for node in reversed(self.nodes):
            rows = found.get(node.name)
            if rows is None:
                continue
            for name in cut_refs(node, axis):
                wanted = self.track.rules[node.name].needs(rows, length_of(graph, name, axis[name]))
                known = found.get(name, wanted)
                found[name] = (min(known[0], wanted[0]), max(known[1], wanted[1]))
        return found

    def run(self, maker: Maker, slices: int, only: Sequence[int] | None = None) -> None:
        """All slices, or some of them (for an estimate)."""
        rooms = {name: maker.room(self.graph[name]) for name in self.outputs}
        for at in range(slices) if only is None else only:
            needs = self.needs(at, slices)
            pieces = self._slice(maker, needs)
            for name, room in rooms.items():
                length = length_of(self.graph, name, self.track.axis[name])
                first, last = at * length // slices, (at + 1) * length // slices
                axis = self.track.axis[name]
                value = _rows(maker, pieces[name], axis, (first, last))
                maker.put(room, axis, first, value, last - first)
        for name, room in rooms.items():
            maker.done(name, room)

    def _slice(self, maker: Maker, needs: Mapping[str, Span]) -> dict[str, Piece]:
        pieces: dict[str, Piece] = {}
        axis = self.track.axis
        for node in self.nodes:
            if node.name not in needs:
                continue
            for name in cut_refs(node, axis):
                if name not in pieces:  # from outside
                    whole = Piece(maker.whole(name), (0, length_of(self.graph, name, axis[name])))
                    pieces[name] = whole
            made = self._piece(maker, node, pieces, needs)
            value = maker.piece(node.name, axis[node.name], made.value, made.rows, needs[node.name])
            pieces[node.name] = Piece(value, made.rows)
        return pieces

    def _piece(
        self, maker: Maker, node: Node, pieces: Mapping[str, Piece], needs: Mapping[str, Span]
    ) -> Piece:
        axis, rule = self.track.axis, self.track.rules[node.name]
        cut = cut_refs(node, axis)
        length = length_of(self.graph, cut[0], axis[cut[0]])
        if isinstance(rule, Pointwise):
            held = {pieces[name].rows for name in cut}
            rows = held.pop() if len(held) == 1 and _own(self.nodes, cut) else needs[node.name]
            env = {name: _rows(maker, pieces[name], axis[name], rows) for name in cut}
            args = with_rows(node, node.args, length, rows[1] - rows[0])
            return Piece(maker.call(node, args, env, rows[1] - rows[0]), rows)
        wanted = rule.needs(needs[node.name], length)
        value = _rows(maker, pieces[cut[0]], axis[cut[0]], wanted)
        if value is not pieces[cut[0]].value and node.op in HALO_OPS:
            value = maker.contiguous(value)
        args = node.args
        if isinstance(rule, Reach):
            gives, inner = rule.gives(wanted, length)
            args = without_padding(node, rule) if inner else args
        else:
            assert isinstance(rule, Scale)  # noqa: S101 there are three rules
            gives = (wanted[0] * rule.factor, wanted[1] * rule.factor)
        return Piece(maker.call(node, args, {cut[0]: value}, gives[1] - gives[0]), gives)

    def work(self, slices: int) -> float:
        """FLOPs of all slices together; an operation's are in proportion to its rows."""
        axis = self.track.axis
        a_row = {
            node.name: self.graph.cost(node.name).flops / length_of(self.graph, node.name, axis[node.name])
            for node in self.nodes
        }
        return sum(
            (last - first) * a_row.get(name, 0.0)
            for at in range(slices)
            for name, (first, last) in self.needs(at, slices).items()
        )


def _own(nodes: Sequence[Node], names: Sequence[str]) -> bool:
    """Whether all of these are pieces already, none a whole value from outside."""
    inside = {node.name for node in nodes}
    return all(name in inside for name in names)


def _rows(maker: Maker, piece: Piece, axis: int, rows: Span) -> Any:
    if rows == piece.rows:
        return piece.value
    return maker.narrow(piece.value, axis, rows[0] - piece.rows[0], rows[1] - rows[0])
