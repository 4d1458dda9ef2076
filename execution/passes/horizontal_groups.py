"""Sibling operations: same operation, same shapes, none before another; found level by level from the inputs.

A `Group` is what one operation can do for all its members. Operations of one level (longest way from the inputs)
cannot depend on each other, so merging groups, even many at once, never makes a cycle.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from execution.graph.form import Graph
from execution.graph.node import HOLDERS, Node, Ref, TensorValue

LINEAR: Final = "aten.linear.default"
LAYER_NORM: Final = "aten.layer_norm.default"
UNARY: Final = frozenset(
    f"aten.{name}.default"
    for name in ("relu", "gelu", "silu", "tanh", "sigmoid", "exp", "neg", "hardswish", "leaky_relu", "clamp")
)
BINARY: Final = frozenset(f"aten.{name}.Tensor" for name in ("add", "mul", "sub", "div"))

Shape = Literal["side by side", "stacked"]


@dataclass(frozen=True, slots=True)
class Group:
    """Members of one merged operation, in order."""

    members: tuple[str, ...]
    shape: Shape
    """`side by side`: one matmul of one input with all weights, sliced; `stacked`: a leading dimension of members."""
    sources: tuple[int | None, ...]
    """For each tensor argument: the group that it comes from, member by member; None: from outside."""
    joins: int
    """Number of the component of groups that feed each other."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Which siblings are worth looking at."""

    least_members: int
    least_towers: int
    """Of linears with different inputs, which have to be stacked first."""
    most_rows: int
    """Of one member's matmul: larger ones fill the machine by themselves."""


def levels(graph: Graph) -> dict[str, int]:
    """Longest way of each node from those that depend on nothing."""
    found: dict[str, int] = {}
    for node in graph:
        before = graph.dependencies[node.name]
        weights = node.kind in HOLDERS
        found[node.name] = 0 if weights else 1 + max((found[name] for name in before), default=0)
    return found


def find_groups(graph: Graph, limits: Limits) -> list[Group]:
    """All groups; a node is in one at most."""
    return _Finder(graph, limits).run()


class _Finder:
    def __init__(self, graph: Graph, limits: Limits) -> None:
        self.graph, self.limits = graph, limits
        self.level = levels(graph)
        self.groups: list[Group] = []
        self.place: dict[str, tuple[int, int]] = {}  # node -> (group, position); stacked groups only
        self.taken: set[str] = set()

    def run(self) -> list[Group]:
        by_level: dict[int, list[Node]] = defaultdict(list)
        for node in self.graph.calls:
            if node.pure and isinstance(node.value, TensorValue) and _known(node.op):
                by_level[self.level[node.name]].append(node)
        for level in sorted(by_level):
            nodes = by_level[level]
            self._same_input([node for node in nodes if node.op == LINEAR])
            self._alike([node for node in nodes if node.name not in self.taken])
        return self.groups

    def _same_input(self, linears: list[Node]) -> None:
        by_input: dict[Any, list[Node]] = defaultdict(list)
        for node in linears:
            if self._weights_held(node) and node.args[0].name not in self.place:
                by_input[node.args[0], len(node.args)].append(node)
        for nodes in by_input.values():
            if len(nodes) < self.limits.least_members or _rows(nodes[0]) > self.limits.most_rows:
                continue
            alike = len({_tensor(node).shape for node in nodes}) == 1
            stacked = alike and all(self._goes_on(node) for node in nodes)
            self._add(nodes, "stacked" if stacked else "side by side", (None,))

    def _goes_on(self, node: Node) -> bool:
        """Whether what follows can stay stacked."""
        users = [self.graph[name] for name in self.graph.users[node.name]]
        return bool(users) and all(_known(user.op) and user.pure for user in users)

    def _alike(self, nodes: list[Node]) -> None:
        by_signature: dict[Any, dict[int, list[Node]]] = defaultdict(lambda: defaultdict(list))
        for node in nodes:
            told = self._signature(node)
            if told is not None:
                signature, position = told
                by_signature[signature][position].append(node)
        for (op, _, sources, *_), at in by_signature.items():
            if all(source is None for source in sources):
                self._fresh(op, [node for found in at.values() for node in found], sources)
                continue
            count = len(self.groups[next(s for s in sources if s is not None)].members)
            if len(at) != count:
                continue
            for turn in range(min(len(found) for found in at.values())):
                self._add([at[i][turn] for i in range(count)], "stacked", sources)

    def _fresh(self, op: str, nodes: list[Node], sources: tuple[int | None, ...]) -> None:
        """Linears over different inputs: worth stacking when there are many, and small."""
        small = op == LINEAR and len(nodes) >= self.limits.least_towers
        if small and _rows(nodes[0]) <= self.limits.most_rows:
            self._add(nodes, "stacked", sources)

    def _signature(self, node: Node) -> tuple[tuple[Any, ...], int] | None:
        """What siblings have in common, and the position among them; None: cannot be merged."""
        if node.op in {LINEAR, LAYER_NORM} and not self._weights_held(node):
            return None
        sources: list[int | None] = []
        told: list[Any] = []
        positions = set()
        for i, arg in enumerate(node.args):
            if not isinstance(arg, Ref):
                told.append(arg)
                continue
            source = self.graph[arg.name]
            value = source.value
            if not isinstance(value, TensorValue) or value.dtype != _tensor(node).dtype:
                return None
            told.append((value.shape, value.dtype))
            if node.op in {LINEAR, LAYER_NORM} and i > 0:
                continue
            group = self.place.get(arg.name)
            if group is not None:
                positions.add(group[1])
                sources.append(group[0])
                if value.shape != _tensor(node).shape and node.op != LINEAR:
                    return None  # broadcast within a member
                continue
            sources.append(None)
            broad = len(value.shape) > len(_tensor(node).shape)
            if node.op in BINARY and (broad or source.kind not in HOLDERS):
                return None
        if len(positions) > 1 or (not positions and node.op != LINEAR):
            return None
        signature = (node.op, tuple(told), tuple(sources), node.kwargs, _tensor(node))
        return signature, positions.pop() if positions else 0

    def _weights_held(self, node: Node) -> bool:
        last = 3 if node.op == LINEAR else len(node.args)
        places = node.args[1:last] if node.op == LINEAR else node.args[2:4]
        return isinstance(node.args[0], Ref) and all(
            arg is None or (isinstance(arg, Ref) and self.graph[arg.name].kind in HOLDERS) for arg in places
        )

    def _add(self, nodes: list[Node], shape: Shape, sources: tuple[int | None, ...]) -> None:
        number = len(self.groups)
        fed = [self.groups[source].joins for source in sources if source is not None]
        joins = min(fed, default=number)
        if len(set(fed)) > 1:
            self.groups = [
                Group(g.members, g.shape, g.sources, joins if g.joins in fed else g.joins)
                for g in self.groups
            ]
        self.groups.append(Group(tuple(node.name for node in nodes), shape, sources, joins))
        for i, node in enumerate(nodes):
            self.taken.add(node.name)
            if shape == "stacked":
                self.place[node.name] = (number, i)


def components(groups: list[Group]) -> Mapping[int, tuple[int, ...]]:
    """Indices of the groups of each component."""
    found: dict[int, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        found[group.joins].append(i)
    return {joins: tuple(indices) for joins, indices in found.items()}


def _known(op: str) -> bool:
    return op in UNARY or op in BINARY or op in {LINEAR, LAYER_NORM}


def _tensor(node: Node) -> TensorValue:
    assert isinstance(node.value, TensorValue)  # noqa: S101 only such nodes are looked at
    return node.value


def _rows(node: Node) -> int:
    return math.prod(int(dim) for dim in _tensor(node).shape[:-1])
