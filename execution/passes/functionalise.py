"""In-place operations on the graph's own values become ordinary ones, so that other passes may move and merge them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from execution.graph.form import Graph
from execution.graph.node import GraphError, Node, Ref
from execution.graph.rebuild import resolve_op
from execution.passes.base import register
from execution.passes.memory import external_roots


@register("functionalise")
@dataclass(frozen=True, slots=True)
class Functionalise:
    """`y.relu_()` becomes `y = relu(y)` where y is a value of the graph's own that no view of is used afterwards.

    Inputs, weights and buffers that are written to stay written to. Memory may grow: the fresh value lives beside
    the old one while the operation runs.
    """

    def __call__(self, graph: Graph) -> Graph:
        """Bit-exact: the same arithmetic, put elsewhere."""
        refused: set[str] = set()
        while True:
            chosen = next((node for node in graph if node.name not in refused and _functional(node)), None)
            if chosen is None:
                return graph
            if _own(graph, chosen):
                graph = _rewritten(graph, chosen)
            else:
                refused.add(chosen.name)


def _rewritten(graph: Graph, chosen: Node) -> Graph:
    """With one operation made functional, its result in place of the target from there on."""
    names: dict[str, str] = {}
    nodes = []
    for node in graph:
        if node.name == chosen.name:
            nodes.append(replace(node, op=_functional(node), writes=(), views=()))
            names = {node.writes[0]: node.name}
        else:
            nodes.append(node.renamed(names))
    return graph.replace(nodes=nodes)


def _functional(node: Node) -> str:
    """The operation without the write: same schema, no underscore."""
    parts = node.op.split(".")
    if node.kind != "call" or node.effect or len(node.writes) != 1 or len(parts) != 3:
        return ""
    if not parts[1].endswith("_") or not node.args or node.args[0] != Ref(node.writes[0]):
        return ""
    op = f"{parts[0]}.{parts[1][:-1]}.{parts[2]}"
    try:
        resolve_op(op)
    except GraphError:
        return ""
    return op


def _own(graph: Graph, node: Node) -> bool:
    """Whether the target is a whole fresh value, and nothing made before shares its memory afterwards."""
    target = node.writes[0]
    if graph.storages[target] != (target,) or target in external_roots(graph):
        return False
    if graph[target].value != node.value:
        return False
    place = {name: index for index, name in enumerate(graph.order)}
    here = place[node.name]
    earlier = [
        name
        for name, roots in graph.storages.items()
        if target in roots and name != target and place[name] < here
    ]
    return not any(place[user] > here for name in earlier for user in graph.users[name])
