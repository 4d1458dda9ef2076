"""Dead code: what no result depends on is not computed."""

from __future__ import annotations

from dataclasses import dataclass

from execution.graph.form import Graph
from execution.graph.node import HOLDERS
from execution.passes.base import register


@register("dce")
@dataclass(frozen=True, slots=True)
class DeadCode:
    """Drop pure operations and weights that nothing takes; inputs stay, and all that writes, draws or acts."""

    def __call__(self, graph: Graph) -> Graph:
        """Bit-exact."""
        live: set[str] = set()
        for node in reversed(graph.nodes):
            droppable = node.pure or node.kind in HOLDERS
            if not droppable or node.name in live:
                live.update((node.name, *node.refs(), *node.views, *node.writes))
        if len(live) == len(graph):
            return graph
        return graph.replace(nodes=[node for node in graph if node.name in live])
