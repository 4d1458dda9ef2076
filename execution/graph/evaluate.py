"""Runs some nodes of a graph on the tensors that it holds: for constants that are computed once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from execution.graph.form import Graph
from execution.graph.node import HOLDERS, GraphError
from execution.graph.rebuild import argument, rebuild, resolve_op


def evaluate(graph: Graph, names: Iterable[str]) -> dict[str, Any]:
    """Values of nodes that depend on held tensors alone. Raises GraphError for one that needs an input."""
    values: dict[str, Any] = {}
    with torch.no_grad():
        for name in names:
            _evaluate(graph, name, values)
    return values


def _evaluate(graph: Graph, wanted: str, values: dict[str, Any]) -> None:
    pending = [wanted]
    while pending:
        name = pending[-1]
        missing = [ref for ref in graph[name].refs() if ref not in values]
        if missing:
            pending.extend(missing)
            continue
        pending.pop()
        if name not in values:
            values[name] = _value(graph, name, values)


def _value(graph: Graph, name: str, values: dict[str, Any]) -> Any:
    node = graph[name]
    if node.kind in HOLDERS:
        return graph.tensors[node.target]
    if node.kind != "call":
        raise GraphError(f"{graph.name}: {name} is an {node.kind}: its value is not known before the call")
    args = [argument(arg, values) for arg in node.args]
    kwargs = {key: argument(value, values) for key, value in node.kwargs}
    call = rebuild(node.inner) if node.inner is not None else resolve_op(node.op)
    return call(*args, **kwargs)
