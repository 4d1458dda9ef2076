"""What passes ask about memory before they merge, drop or move a node."""

from __future__ import annotations

from collections.abc import Mapping

from execution.graph.form import Graph
from execution.graph.node import HOLDERS, Node


def written_roots(graph: Graph) -> frozenset[str]:
    """Buffers that some node writes to."""
    return frozenset(root for node in graph for name in node.writes for root in graph.storages[name])


def external_roots(graph: Graph) -> frozenset[str]:
    """Buffers that are not the graph's own: inputs, weights."""
    return frozenset(
        root for node in graph if node.kind in (*HOLDERS, "input") for root in graph.storages[node.name]
    )


def result_roots(graph: Graph) -> frozenset[str]:
    """Buffers that the results live in."""
    return frozenset(root for name in graph.output.refs() for root in graph.storages[name])


def may_alias(graph: Graph, node: Node, source: str) -> bool:
    """Whether a node's own, fresh result may be replaced by `source` itself: nobody could tell them apart.

    Not when either is written to somewhere, and not when a result would become an input, a weight or another result.
    """
    roots = {*graph.storages[node.name], *graph.storages[source]}
    if roots & written_roots(graph):
        return False
    if not set(graph.storages[node.name]) & result_roots(graph):
        return True
    return not set(graph.storages[source]) & (external_roots(graph) | result_roots(graph))


def rename(graph: Graph, names: Mapping[str, str]) -> Graph:
    """Without the nodes that are keys, whose users take the nodes that are values; values may be keys in turn."""
    if not names:
        return graph
    final = {}
    for name in names:
        target = names[name]
        while target in names:
            target = names[target]
        final[name] = target
    return graph.replace(nodes=[node.renamed(final) for node in graph if node.name not in final])
