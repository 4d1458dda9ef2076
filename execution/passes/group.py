"""Puts groups of operations into fused nodes, each with what it does as an inner graph.

    fused = fuse(graph, [Group("rms_norm", ("pow", "mean", "add", "rsqrt", "mul"), (("eps", 1e-5),))])

A group may be fused if nothing outside lies between two of its members: `Clusters` keeps track while groups grow.
The fused node stands where its last member stood, or later; it has that member's name when the group gives one value, so
that results keep their names.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from execution.graph.form import OUTPUT, Graph, Signature
from execution.graph.node import GETITEM, GraphError, Node, Ref

Setting = int | float | str | bool


@dataclass(frozen=True, slots=True)
class Group:
    """Operations to be one node."""

    kind: str
    """The fused node's operation is `fused.KIND`."""
    members: tuple[str, ...]
    attrs: tuple[tuple[str, Setting], ...] = ()


class Clusters:
    """Nodes of a graph, some of them joined; joining two never makes a circle."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._of = {name: name for name in graph.order}
        self._members = {name: [name] for name in graph.order}
        self._before = {name: set(before) for name, before in graph.dependencies.items()}
        self._after: dict[str, set[str]] = {name: set() for name in graph.order}
        for name, before in self._before.items():
            for earlier in before:
                self._after[earlier].add(name)

    def of(self, name: str) -> str:
        """The cluster that a node is in, by the name of its first member."""
        return self._of[name]

    def members(self, cluster: str) -> tuple[str, ...]:
        """Its nodes, in program order."""
        place = {name: index for index, name in enumerate(self._graph.order)}
        return tuple(sorted(self._members[cluster], key=place.__getitem__))

    def joinable(self, names: Iterable[str]) -> bool:
        """Whether the clusters of these nodes can be one: no way leads out of them and back in."""
        wanted = {self._of[name] for name in names}
        if len(wanted) < 2:
            return True
        pending = [after for cluster in wanted for after in self._after[cluster] if after not in wanted]
        seen = set(pending)
        while pending:
            for after in self._after[pending.pop()]:
                if after in wanted:
                    return False
                if after not in seen:
                    seen.add(after)
                    pending.append(after)
        return True

    def join(self, names: Iterable[str]) -> str:
        """Make one cluster of those that these nodes are in. Raises GraphError where they cannot be."""
        told = list(names)
        if not self.joinable(told):
            raise GraphError(
                f"{self._graph.name}: {', '.join(told[:4])} cannot be one node: others lie between them"
            )
        clusters = list(dict.fromkeys(self._of[name] for name in told))
        kept = clusters[0]
        for other in clusters[1:]:
            for name in self._members[other]:
                self._of[name] = kept
            self._members[kept] += self._members.pop(other)
            for neighbours, back in ((self._before, self._after), (self._after, self._before)):
                for each in neighbours.pop(other):
                    back[each].discard(other)
                    if each != kept:
                        back[each].add(kept)
                        neighbours[kept].add(each)
                neighbours[kept].discard(other)
        return kept


def fuse(graph: Graph, groups: Sequence[Group]) -> Graph:
    """The graph with every group as one node. Raises GraphError for groups that overlap or cannot be one."""
    if not groups:
        return graph
    clusters = Clusters(graph)
    taken: dict[str, Group] = {}
    for group in groups:
        for name in group.members:
            if name in taken:
                raise GraphError(f"{graph.name}: {name} is in two groups")
            taken[name] = group
        clusters.join(group.members)
    made: dict[str, tuple[Node, ...]] = {}
    for group in groups:
        made[clusters.of(group.members[0])] = _fused(
            graph, group, clusters.members(clusters.of(group.members[0]))
        )
    nodes: list[Node] = []
    for cluster in _sorted(graph, clusters):
        nodes.extend(made.get(cluster, (graph[cluster],)))
    return graph.replace(nodes=nodes)


def _sorted(graph: Graph, clusters: Clusters) -> list[str]:
    """Clusters in an order that keeps every dependency, near to the program's: each by its last member."""
    place = {name: index for index, name in enumerate(graph.order)}
    names = dict.fromkeys(clusters.of(name) for name in graph.order)
    last = {name: max(place[member] for member in clusters.members(name)) for name in names}
    before: dict[str, set[str]] = {name: set() for name in names}
    after: dict[str, set[str]] = {name: set() for name in names}
    for name, earlier in graph.dependencies.items():
        for each in earlier:
            first, second = clusters.of(each), clusters.of(name)
            if first != second:
                before[second].add(first)
                after[first].add(second)
    ready = [(last[name], name) for name in names if not before[name]]
    heapq.heapify(ready)
    found = []
    while ready:
        _, name = heapq.heappop(ready)
        found.append(name)
        for later in after[name]:
            before[later].discard(name)
            if not before[later]:
                heapq.heappush(ready, (last[later], later))
    return found


def _fused(graph: Graph, group: Group, members: Sequence[str]) -> tuple[Node, ...]:
    """The fused node, and getitem nodes where it gives several values."""
    inside = set(members)
    arguments = list(
        dict.fromkeys(ref for name in members for ref in graph[name].refs() if ref not in inside)
    )
    results = [name for name in members if not inside.issuperset(graph.users[name])] or [members[-1]]
    for name in members:
        node = graph[name]
        if not node.pure:
            raise GraphError(f"{graph.name}: {name} writes, draws or acts: it cannot be fused")
        if name in results and any(root not in inside for root in graph.storages[name]):
            raise GraphError(
                f"{graph.name}: {name} is a view of something outside its group: it cannot be a result"
            )
    whole = Node(
        results[0] if len(results) == 1 else f"fused_{results[-1]}",
        "call",
        f"fused.{group.kind}",
        tuple(Ref(name) for name in arguments),
        value=graph[results[0]].value if len(results) == 1 else tuple(graph[name].value for name in results),
        scope=_common_scope([graph[name].scope for name in members]),
        inner=_inner(graph, group, members, arguments, results),
        attrs=tuple(sorted(group.attrs)),
    )
    if len(results) == 1:
        return (whole,)
    items = (
        Node(each, "call", GETITEM, (Ref(whole.name), index), value=graph[each].value, views=(whole.name,))
        for index, each in enumerate(results)
    )
    return (whole, *items)


def _inner(
    graph: Graph, group: Group, members: Sequence[str], arguments: Sequence[str], results: Sequence[str]
) -> Graph:
    inputs = [Node(name, "input", "input", value=graph[name].value, target=name) for name in arguments]
    output = Node(OUTPUT, "output", "output", tuple(Ref(name) for name in results))
    body = [replace(graph[name], scope="") for name in members]
    return Graph(
        group.kind,
        [*inputs, *body, output],
        symbols=graph.symbols,
        signature=Signature(input_names=tuple(arguments), output_names=tuple(results)),
    )


def _common_scope(scopes: Sequence[str]) -> str:
    """The longest path that all share."""
    parts = scopes[0].split(".")
    for scope in scopes[1:]:
        same = [first == second for first, second in zip(parts, scope.split("."), strict=False)]
        parts = parts[: same.index(False) if False in same else len(same)]
    return ".".join(parts)


def external_inputs(graph: Graph, members: Iterable[str]) -> set[str]:
    """Tensors that a group takes from outside."""
    inside = set(members)
    return {ref for name in inside for ref in graph[name].refs() if ref not in inside}


def fusible(node: Node) -> bool:
    """Whether a node may be in a group at all."""
    return node.pure and node.inner is None
