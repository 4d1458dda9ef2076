"""Common subexpressions: what is computed twice from the same values is computed once."""

from __future__ import annotations

from dataclasses import dataclass

from execution.graph.form import Graph
from execution.graph.node import Node
from execution.graph.text import arg_text, digest
from execution.passes.base import register
from execution.passes.memory import rename, result_roots, written_roots


@register("cse")
@dataclass(frozen=True, slots=True)
class CommonSubexpressions:
    """Merge pure operations with the same arguments; what draws random numbers, writes or acts is never merged.

    Two reads of one memory are the same only if nothing wrote to it in between; a result that is written to later, or
    handed to the caller, stays apart.
    """

    def __call__(self, graph: Graph) -> Graph:
        """Bit-exact."""
        written, results = written_roots(graph), result_roots(graph)
        versions: dict[str, int] = {}
        seen: dict[str, str] = {}
        names: dict[str, str] = {}
        for node in graph:
            for name in node.writes:
                for root in graph.storages[name]:
                    versions[root] = versions.get(root, 0) + 1
            if not node.pure:
                continue
            own = () if node.views else graph.storages[node.name]
            if written.intersection(own) or results.intersection(own):
                continue
            key = _key(graph, node.renamed(names), versions)
            if key in seen:
                names[node.name] = seen[key]
            else:
                seen[key] = node.name
        return rename(graph, names)


def _key(graph: Graph, node: Node, versions: dict[str, int]) -> str:
    read = [f"{root}@{versions.get(root, 0)}" for name in node.refs() for root in graph.storages[name]]
    kwargs = [f"{key}={arg_text(value)}" for key, value in (*node.kwargs, *node.attrs)]
    inner = digest(node.inner) if node.inner is not None else ""
    return " ".join((node.op, arg_text(node.args), *kwargs, *read, inner))
