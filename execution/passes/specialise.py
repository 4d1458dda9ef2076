"""Shape-bucket specialisation: one graph for sizes from `least` to `most` of a symbol, or for one size alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from execution.graph.form import Graph
from execution.graph.node import (
    Dim,
    GraphError,
    Node,
    Ref,
    ScalarValue,
    Symbol,
    TensorValue,
    Value,
    map_args,
    resolve,
)
from execution.passes.base import register


@register("specialise")
@dataclass(frozen=True, slots=True)
class Specialise:
    """Narrow a symbol to a bucket. Where the bucket is one size, the symbol is gone and sizes are plain numbers.

    Raises GraphError when the graph has no such symbol, or not for these sizes.
    """

    symbol: str = ""
    """Empty: the only one."""
    least: int = 1
    most: int = 1

    def __call__(self, graph: Graph) -> Graph:
        """Bit-exact for the sizes of the bucket; others are refused by the guard."""
        if not graph.symbols and not self.symbol:
            return graph
        symbol = self._symbol(graph)
        low, high = max(self.least, symbol.least), self.most
        if low > high or (symbol.most is not None and high > symbol.most):
            most = "" if symbol.most is None else symbol.most
            raise GraphError(
                f"{graph.name}: {symbol.name} goes from {symbol.least} to {most}, not from {self.least} to {self.most}"
            )
        if low == high:
            return _fixed(graph, symbol, high)
        narrow = replace(symbol, least=low, most=high, example=min(max(symbol.example, low), high))
        return graph.replace(symbols=[narrow if each is symbol else each for each in graph.symbols])

    def _symbol(self, graph: Graph) -> Symbol:
        for symbol in graph.symbols:
            if symbol.name == self.symbol or (not self.symbol and len(graph.symbols) == 1):
                return symbol
        told = ", ".join(symbol.name for symbol in graph.symbols) or "none"
        raise GraphError(f"{graph.name}: which symbol is to be specialised? There are {told}")


def _fixed(graph: Graph, symbol: Symbol, size: int) -> Graph:
    """The symbol replaced by a number everywhere; nodes that only computed sizes are gone."""
    sizes = {symbol.name: size}
    known: dict[str, int] = {}
    nodes: list[Node] = []
    results = set(graph.output.refs())
    for node in graph:
        value = _value(node.value, sizes)
        if isinstance(value, ScalarValue) and isinstance(value.expression, int) and node.pure:
            known[node.name] = value.expression
            if node.name not in results:
                continue
        inner = _fixed(node.inner, symbol, size) if node.inner is not None else None
        told = replace(node, value=value, inner=inner)
        nodes.append(_with_numbers(told, known) if node.kind == "call" else told)
    return graph.replace(nodes=nodes, symbols=[each for each in graph.symbols if each.name != symbol.name])


def _with_numbers(node: Node, known: dict[str, int]) -> Node:
    def swap(arg: object) -> object:
        return known.get(arg.name, arg) if isinstance(arg, Ref) else arg

    return replace(
        node,
        args=map_args(node.args, swap),
        kwargs=tuple((key, map_args(value, swap)) for key, value in node.kwargs),
        views=tuple(name for name in node.views if name not in known),
    )


def _value(value: Value, sizes: dict[str, int]) -> Value:
    match value:
        case TensorValue(shape, dtype, strides):
            return TensorValue(
                tuple(_dim(dim, sizes) for dim in shape), dtype, tuple(_dim(dim, sizes) for dim in strides)
            )
        case ScalarValue(kind, expression) if expression != "":
            return ScalarValue(kind, _dim(expression, sizes))
        case tuple():
            return tuple(_value(item, sizes) for item in value)
    return value


def _dim(dim: Dim, sizes: dict[str, int]) -> Dim:
    """A number where no other symbol is in it; else as it was, with the number put in where it stands alone."""
    try:
        return resolve(dim, sizes)
    except GraphError:
        return _substituted(str(dim), sizes)


def _substituted(text: str, sizes: dict[str, int]) -> str:
    import re  # noqa: PLC0415 rare: two symbols in one size

    for name, size in sizes.items():
        text = re.sub(rf"\b{re.escape(name)}\b", str(size), text)
    return text
