"""Operations that change nothing are taken out: x * 1, x - 0, views that give the very same tensor, needless copies."""

from __future__ import annotations

from dataclasses import dataclass

from execution.graph.cost import base_name
from execution.graph.form import Graph
from execution.graph.node import Arg, Node, Ref, TensorValue, numel
from execution.passes.base import register
from execution.passes.memory import may_alias, rename, result_roots

_COPIES = frozenset({"clone", "lift_fresh_copy", "contiguous"})


@register("simplify")
@dataclass(frozen=True, slots=True)
class Simplify:
    """Algebraic no-ops, where they are exact: x + 0 of floats is not (it turns -0.0 into 0.0) and stays."""

    copies: bool = True
    """Also copies of values that nobody writes to."""

    def __call__(self, graph: Graph) -> Graph:
        """Bit-exact."""
        names: dict[str, str] = {}
        results = result_roots(graph)
        handed: set[str] = set()  # memory that a result moved into: no second result may
        for node in graph:
            source = self._source(graph, node.renamed(names), names)
            if source is None:
                continue
            if not node.views and results.intersection(graph.storages[node.name]):
                if handed.intersection(graph.storages[source]):
                    continue
                handed.update(graph.storages[source])
            names[node.name] = source
        return rename(graph, names)

    def _source(self, graph: Graph, node: Node, names: dict[str, str]) -> str | None:
        """The node whose value this one gives back, if it does."""
        if not node.pure or not isinstance(node.value, TensorValue):
            return None
        if node.views:
            return _same_view(graph, node, names)
        source = _unchanged(node) or (_copied(node) if self.copies else None)
        if source is None or graph[source].value != node.value:
            return None
        return source if may_alias(graph, node, source) else None


def _same_view(graph: Graph, node: Node, names: dict[str, str]) -> str | None:
    """An ancestor that is the same window on the same memory."""
    if node.op.startswith("aten.as_strided") or not isinstance(node.value, TensorValue):
        return None
    result = node.name in graph.output.refs()
    found = node
    size = numel(node.value, graph.sizes)
    best = None
    while len(found.views) == 1 and not found.writes and found.kind == "call":
        source = graph[names.get(found.views[0], found.views[0])]
        if not isinstance(source.value, TensorValue) or numel(source.value, graph.sizes) != size:
            break
        if source.value == node.value:
            best = source
        found = source
    if best is None or (result and (best.kind != "call" or best.name in graph.output.refs())):
        return None
    return best.name


def _unchanged(node: Node) -> str | None:
    """The argument that an operation with 1 or 0 gives back."""
    if not node.op.startswith("aten.") or node.kwargs or len(node.args) != 2:
        return None
    name = base_name(node.op)
    first, second = node.args
    if name == "mul" and _is(first, 1):
        first, second = second, first
    floating = isinstance(node.value, TensorValue) and node.value.dtype.startswith(
        ("float", "bfloat", "complex")
    )
    same = (
        (name in ("mul", "div", "true_divide", "pow") and _is(second, 1))
        or (name == "sub" and _is(second, 0) and str(second) != "-0.0")
        or (name == "add" and _is(second, 0) and (not floating or str(second) == "-0.0"))
    )
    return _name(first) if same else None


def _copied(node: Node) -> str | None:
    return _name(node.args[0]) if base_name(node.op) in _COPIES and node.args else None


def _is(arg: Arg, number: int) -> bool:
    return isinstance(arg, int | float) and not isinstance(arg, bool) and arg == number


def _name(arg: Arg) -> str | None:
    return arg.name if isinstance(arg, Ref) else None
