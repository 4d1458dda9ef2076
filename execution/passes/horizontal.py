"""Horizontal fusion: sibling matmuls, and what follows each of them, become one operation for all.

    Horizontal()(graph)

Linears of one input (query, key and value; gate and up; the first layers of towers) become one matmul of packed
weights. Linears of one shape over different inputs (16-32 small towers) become one batched matmul, and elementwise
operations and norms that follow stay grouped. Weights are packed once, when the pass runs. Sums run over the same
products, perhaps in another order: results are equal within rounding, not bit-exact.

`execution.passes.horizontal_trial` keeps what is measured to win.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch

from execution.graph.form import Graph
from execution.graph.node import GETITEM, GraphError, Node, Ref, TensorValue
from execution.passes.base import register
from execution.passes.editor import Editor
from execution.passes.horizontal_groups import (
    LAYER_NORM,
    LINEAR,
    UNARY,
    Group,
    Limits,
    find_groups,
)


@register("horizontal", exact=False, tolerance="sums in another order: a few ulp of the largest term")
@dataclass(frozen=True, slots=True)
class Horizontal:
    """Pass: merge siblings. For graphs of fixed sizes."""

    least_members: int = 2
    least_towers: int = 4
    most_rows: int = 4096

    def __call__(self, graph: Graph) -> Graph:
        """The graph with all groups merged; the very same graph where there is none."""
        return merge(graph, self.groups(graph))

    def groups(self, graph: Graph) -> list[Group]:
        """What would be merged. Raises GraphError for a graph of sizes that vary."""
        if graph.symbols:
            raise GraphError(
                f"{graph.name}: horizontal: specialise {graph.symbols[0].name} to one size first"
            )
        return find_groups(graph, Limits(self.least_members, self.least_towers, self.most_rows))


def merge(graph: Graph, groups: list[Group], only: Collection[int] | None = None) -> Graph:
    """The graph with these groups merged; `only` those of some components (`Group.joins`)."""
    wanted = {i for i, group in enumerate(groups) if only is None or group.joins in only}
    return _Merger(graph, groups, wanted).run() if wanted else graph


class _Merger:
    def __init__(self, graph: Graph, groups: list[Group], wanted: set[int]) -> None:
        self.graph, self.groups, self.wanted = graph, groups, wanted
        self.editor = Editor(graph)
        self.group_of = {name: i for i in wanted for name in groups[i].members}
        self.stacks: dict[int, Ref] = {}

    def run(self) -> Graph:
        for unit in _schedule(self.graph, self.group_of):
            if isinstance(unit, int):
                self._merged(unit)
            elif not self._joined(unit):
                self.editor.copy(unit)
        return self.editor.finish()

    def _merged(self, number: int) -> None:
        group = self.groups[number]
        nodes = [self.graph[name] for name in group.members]
        if group.shape == "side by side":
            self._side_by_side(nodes)
            return
        self.stacks[number] = stack = self._stacked(group, nodes)
        for i, node in enumerate(nodes):
            if self._needed(node, number):
                self.editor.stand_in(node.name, self.editor.call("aten.select.int", stack, 0, i))

    def _needed(self, node: Node, number: int) -> bool:
        """Whether someone takes the member by itself: not another group, nor a join of all members."""
        for name in self.graph.users[node.name]:
            user = self.group_of.get(name)
            if user is not None and number in self.groups[user].sources:
                continue
            if user is None and self._join_source(self.graph[name]) == number:
                continue
            return True
        return False

    def _side_by_side(self, nodes: list[Node]) -> None:
        packed = self._packed_linear(nodes)
        at = 0
        for node in nodes:
            size = _shape(node)[-1]
            part = self.editor.call("aten.slice.Tensor", packed, len(_shape(node)) - 1, at, at + size)
            self.editor.stand_in(node.name, part)
            at += size

    def _packed_linear(self, nodes: list[Node]) -> Ref:
        weights = torch.cat([self._held(node, 1) for node in nodes])
        args = [nodes[0].args[0], self.editor.hold(f"{nodes[0].name}_packed", weights)]
        if _bias(nodes[0]) is not None:
            bias = torch.cat([self._held(node, 2) for node in nodes])
            args.append(self.editor.hold(f"{nodes[0].name}_bias", bias))
        return self.editor.call(LINEAR, *args, hint=f"{nodes[0].name}_all")

    def _stacked(self, group: Group, nodes: list[Node]) -> Ref:
        first = nodes[0]
        if first.op == LINEAR:
            if group.sources == (None,) and len({node.args[0] for node in nodes}) == 1:
                return self._fanned_out(nodes)
            return self._batched(group, nodes)
        if first.op in UNARY:
            return self.editor.call(
                first.op, self._source(group, nodes, 0), *first.args[1:], kwargs=first.kwargs
            )
        if first.op == LAYER_NORM:
            return self._norm(group, nodes)
        sides = []
        for place, arg in enumerate(first.args):
            sides.append(self._side(group, nodes, place) if isinstance(arg, Ref) else arg)
        return self.editor.call(first.op, *sides, kwargs=first.kwargs)

    def _side(self, group: Group, nodes: list[Node], place: int) -> Ref:
        """One argument of a grouped binary operation: a group, one weight for all, or a weight each."""
        refs = [i for i, arg in enumerate(nodes[0].args) if isinstance(arg, Ref)]
        source = group.sources[refs.index(place)]
        if source is not None:
            return self._source(group, nodes, refs.index(place))
        if len({node.args[place] for node in nodes}) == 1:
            return self.editor.now(nodes[0].args[place])
        return self._weights(nodes, place, len(_shape(nodes[0])))

    def _weights(self, nodes: list[Node], place: int, rank: int) -> Ref:
        """A weight of each member, stacked, shaped to broadcast over members of this rank."""
        stacked = torch.stack([self._held(node, place) for node in nodes])
        shape = (len(nodes), *(1,) * (rank - stacked.dim() + 1), *stacked.shape[1:])
        return self.editor.hold(f"{nodes[0].name}_w{place}", stacked.reshape(shape).contiguous())

    def _fanned_out(self, nodes: list[Node]) -> Ref:
        """One input, alike weights: a packed matmul, seen as a stack."""
        packed = self._packed_linear(nodes)
        *lead, width = _shape(nodes[0])
        split = self.editor.call("aten.reshape.default", packed, (*lead, len(nodes), width))
        rank = len(lead)
        return self.editor.call("aten.permute.default", split, (rank, *range(rank), rank + 1))

    def _batched(self, group: Group, nodes: list[Node]) -> Ref:
        count, shape = len(nodes), _shape(nodes[0])
        x = self._source(group, nodes, 0)
        inner = self.editor.shape(x)[-1]
        if len(shape) != 2:
            x = self.editor.call("aten.reshape.default", x, (count, -1, inner))
        packed = torch.stack([self._held(node, 1).t() for node in nodes]).contiguous()
        weights = self.editor.hold(f"{nodes[0].name}_packed", packed)
        if _bias(nodes[0]) is None:
            y = self.editor.call("aten.bmm.default", x, weights, hint=f"{nodes[0].name}_all")
        else:
            bias = torch.stack([self._held(node, 2) for node in nodes])[:, None, :].contiguous()
            held = self.editor.hold(f"{nodes[0].name}_bias", bias)
            y = self.editor.call("aten.baddbmm.default", held, x, weights, hint=f"{nodes[0].name}_all")
        return y if len(shape) == 2 else self.editor.call("aten.reshape.default", y, (count, *shape))

    def _norm(self, group: Group, nodes: list[Node]) -> Ref:
        first = nodes[0]
        x = self._source(group, nodes, 0)
        eps = first.args[4] if len(first.args) > 4 else 1e-5
        y = self.editor.call(LAYER_NORM, x, first.args[1], None, None, eps)
        for place, op in ((2, "aten.mul.Tensor"), (3, "aten.add.Tensor")):
            if len(first.args) > place and first.args[place] is not None:
                y = self.editor.call(op, y, self._weights(nodes, place, len(_shape(first))))
        return y

    def _source(self, group: Group, nodes: list[Node], ordinal: int) -> Ref:
        """The stacked values of one argument of all members."""
        number = group.sources[ordinal]
        if number is not None and number in self.stacks:
            return self.stacks[number]
        place = [i for i, arg in enumerate(nodes[0].args) if isinstance(arg, Ref)][ordinal]
        refs = [node.args[place] for node in nodes]
        return self._unsplit(refs) or self.editor.call("aten.stack.default", tuple(refs), 0)

    def _unsplit(self, refs: list[Ref]) -> Ref | None:
        """Pieces of one `unbind` or `split` into ones, all and in order, stacked: a view of what was split."""
        pieces = [self.graph[ref.name] for ref in refs]
        if any(piece.op != GETITEM for piece in pieces) or len({piece.args[0] for piece in pieces}) != 1:
            return None
        whole = self.graph[pieces[0].args[0].name]
        if [piece.args[1] for piece in pieces] != list(range(len(_parts(whole)))):
            return None
        source = whole.args[0]
        rank = len(self.editor.shape(source))
        if whole.op == "aten.unbind.int":
            dim = (whole.args[1] if len(whole.args) > 1 else 0) % rank
            return self.editor.call(
                "aten.permute.default", source, (dim, *(i for i in range(rank) if i != dim))
            )
        if whole.op == "aten.split.Tensor" and whole.args[1] == 1:
            dim = (whole.args[2] if len(whole.args) > 2 else 0) % rank
            moved = (dim, *(i for i in range(rank) if i != dim))
            front = self.editor.call("aten.permute.default", source, moved)
            return self.editor.call("aten.unsqueeze.default", front, dim + 1)
        return None

    def _join_source(self, node: Node) -> int | None:
        """The stacked group of which a `stack` or `cat` takes all members, in order."""
        if node.op not in {"aten.stack.default", "aten.cat.default"} or not node.args[0]:
            return None
        names = tuple(part.name if isinstance(part, Ref) else "" for part in node.args[0])
        number = self.group_of.get(names[0])
        if number is None or self.groups[number].shape != "stacked":
            return None
        return number if self.groups[number].members == names else None

    def _joined(self, node: Node) -> bool:
        number = self._join_source(node)
        if number is None:
            return False
        stack = self.stacks[number]
        rank = len(self.editor.shape(stack))
        if node.op == "aten.stack.default":
            dim = (node.args[1] if len(node.args) > 1 else 0) % rank
            order = list(range(1, rank))
            order.insert(dim, 0)
            self.editor.stand_in(node.name, self.editor.call("aten.permute.default", stack, tuple(order)))
            return True
        dim = (node.args[1] if len(node.args) > 1 else 0) % (rank - 1)
        order = list(range(1, rank))
        order.insert(dim, 0)
        moved = self.editor.call("aten.permute.default", stack, tuple(order))
        self.editor.stand_in(node.name, self.editor.call("aten.reshape.default", moved, _shape(node)))
        return True

    def _held(self, node: Node, place: int) -> torch.Tensor:
        held = self.graph.tensors[self.graph[node.args[place].name].target]
        assert isinstance(held, torch.Tensor)  # noqa: S101 groups take held weights only
        return held.detach()


def _schedule(graph: Graph, group_of: dict[str, int]) -> Iterator[Node | int]:
    """Nodes and group numbers such that all comes after what it needs, near program order."""
    place = {node.name: i for i, node in enumerate(graph)}
    members: dict[str | int, list[str]] = {}
    for node in graph:
        members.setdefault(group_of.get(node.name, node.name), []).append(node.name)
    waits: dict[str | int, set[str | int]] = {}
    frees: dict[str | int, list[str | int]] = {unit: [] for unit in members}
    for unit, names in members.items():
        waits[unit] = {group_of.get(before, before) for name in names for before in graph.dependencies[name]}
        for before in waits[unit]:
            frees[before].append(unit)
    ready = [(place[members[unit][0]], unit) for unit, needs in waits.items() if not needs]
    heapq.heapify(ready)
    while ready:
        _, unit = heapq.heappop(ready)
        yield unit if isinstance(unit, int) else graph[unit]
        for after in frees[unit]:
            waits[after].discard(unit)
            if not waits[after]:
                heapq.heappush(ready, (place[members[after][-1]], after))


def _shape(node: Node) -> tuple[int, ...]:
    assert isinstance(node.value, TensorValue)  # noqa: S101 groups hold such nodes only
    return tuple(int(dim) for dim in node.value.shape)


def _parts(node: Node) -> tuple[object, ...]:
    return node.value if isinstance(node.value, tuple) else ()


def _bias(node: Node) -> Ref | None:
    return node.args[2] if len(node.args) > 2 else None
