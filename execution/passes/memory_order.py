"""Memory-aware order: the same operations, run such that the least memory is live at once.

    MemoryOrder()(graph)                    # the graph in the best order found
    plan = MemoryOrder().solve(graph)       # and the figures: peaks, what found it, whether it is minimal

Views, writes in place and random draws keep their order through `graph.dependencies`, so the result is bit-exact: each
operation gets the very same arguments. What is counted is what the graph allocates; inputs and weights are the
caller's. A node of several outputs counts as one buffer, freed when all of them are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from execution.graph.form import Graph
from execution.graph.node import Node, tensors_of
from execution.passes.base import register
from execution.passes.order_exact import SearchBudget, Solution, minimal_order
from execution.passes.order_problem import Operation, OrderProblem


@register("memory_order")
@dataclass(frozen=True, slots=True)
class MemoryOrder:
    """Pass: the order of lowest peak memory. Never worse than the order that it is given."""

    beam: int = 16
    """Width of the beam search."""
    states: int = 3_000
    """Visited by the exact search in each part of the graph, at most."""

    def __call__(self, graph: Graph) -> Graph:
        """The graph in the best order; the very same graph when its own order is as good."""
        return in_order_of(graph, self.solve(graph))

    def solve(self, graph: Graph, sizes: Mapping[str, int] | None = None) -> Solution:
        """The order and its figures; indices count the graph's calls. `sizes` of symbols: default the examples."""
        return minimal_order(order_problem(graph, sizes), SearchBudget(self.beam, self.states))


def in_order_of(graph: Graph, solution: Solution) -> Graph:
    """The graph in a solution's order; the very same graph when its own order is as good."""
    if solution.peak_bytes >= solution.program_peak_bytes:
        return graph
    calls = graph.calls
    rest = [node.name for node in graph.nodes if node.kind not in {"call", "output"}]
    return graph.with_order([*rest, *(calls[i].name for i in solution.order), graph.output.name])


def order_problem(graph: Graph, sizes: Mapping[str, int] | None = None) -> OrderProblem:
    """The graph's calls as a problem of order."""
    calls = graph.calls
    index = {node.name: i for i, node in enumerate(calls)}
    operations = []
    for node in calls:
        before = tuple(index[name] for name in graph.dependencies[node.name] if name in index)
        touched = {
            index[owner]
            for name in (*node.refs(), *node.views, *node.writes, node.name)
            for owner in _owners(graph, name)
            if owner in index and owner != node.name
        }
        operations.append(Operation(before, _allocates(graph, node, sizes), tuple(sorted(touched))))
    kept = {index[owner] for name in graph.output.refs() for owner in _owners(graph, name) if owner in index}
    return OrderProblem.of(operations, kept)


def _owners(graph: Graph, name: str) -> set[str]:
    """Nodes that allocated the memory in which a node's value lives."""
    return {storage.partition("#")[0] for storage in graph.storages[name]}


def _allocates(graph: Graph, node: Node, sizes: Mapping[str, int] | None) -> int:
    if node.name not in _owners(graph, node.name) or not tensors_of(node.value):
        return 0
    return graph.value_bytes(node.name, sizes)
