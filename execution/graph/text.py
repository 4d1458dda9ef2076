"""A graph as text: stable, readable, complete but for the tensors' contents; golden files and digests rest on it.

    graph Mlp(x: float32[rows, 64]) -> down
      rows: 1 to 512
      %w = parameter gate.weight : float32[64, 128]
      %mm = aten.mm.default(%x, %w) : float32[rows, 128]  @gate
      %relu_ = aten.relu_.default(%mm) : float32[rows, 128]  views %mm, writes %mm
      return %relu_

Strides are told where a tensor is not contiguous; what a fused node does stands indented beneath it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from execution.graph.form import Graph
from execution.graph.node import (
    HOLDERS,
    Arg,
    Node,
    Record,
    Ref,
    ScalarValue,
    TensorValue,
    Value,
    is_contiguous,
)


def text_of(graph: Graph, *, scopes: bool = True) -> str:
    """The whole graph, a node a line; `scopes`: module paths behind them."""
    return "\n".join(_lines(graph, scopes=scopes)) + "\n"


def node_text(node: Node, *, scopes: bool = True) -> str:
    """One node, without what is inside a fused one."""
    if node.kind == "input":
        made = f"%{node.name} = input {node.target}"
        if node.args:
            made += f" = {arg_text(node.args[0])}"
    elif node.kind in HOLDERS:
        made = f"%{node.name} = {node.kind} {node.target}"
    elif node.kind == "output":
        return f"return {', '.join(arg_text(arg) for arg in node.args)}"
    else:
        args = [arg_text(arg) for arg in node.args]
        args += [f"{key}={arg_text(value)}" for key, value in (*node.kwargs, *node.attrs)]
        made = f"%{node.name} = {node.op}({', '.join(args)})"
    made += f" : {value_text(node.value)}"
    notes = []
    if node.views:
        notes.append("views " + " ".join(f"%{name}" for name in node.views))
    if node.writes:
        notes.append("writes " + " ".join(f"%{name}" for name in node.writes))
    if node.effect:
        notes.append(node.effect)
    made += f"  {', '.join(notes)}" if notes else ""
    return f"{made}  @{node.scope}" if scopes and node.scope else made


def arg_text(arg: Arg) -> str:
    """An argument as a reader of Python expects it."""
    match arg:
        case Ref() as ref:
            return str(ref)
        case tuple():
            return f"[{', '.join(arg_text(item) for item in arg)}]"
        case Record((), (start, stop, step)):
            return f"slice({arg_text(start)}, {arg_text(stop)}, {arg_text(step)})"
        case Record(names, values):
            pairs = zip(names, values, strict=True)
            return f"{{{', '.join(f'{name}: {arg_text(value)}' for name, value in pairs)}}}"
        case str():
            return repr(arg)
    return str(arg)


def value_text(value: Value) -> str:
    """`float32[rows, 64]`, with strides in braces where they are not the usual ones."""
    match value:
        case TensorValue():
            usual = not value.strides or is_contiguous(value)
            return f"{value}" if usual else f"{value}{{{', '.join(str(step) for step in value.strides)}}}"
        case ScalarValue():
            return str(value)
        case tuple():
            return f"({', '.join(value_text(item) for item in value)})"
    return "none"


def digest(graph: Graph) -> str:
    """sha256 of the text without names of modules: the same for the same computation of the same shapes.

    The contents of tensors do not count, so that one artifact serves all layers of one form.
    """
    names = {node.name: f"v{index}" for index, node in enumerate(graph)}
    lines = [f"{symbol.name} {symbol.least} {symbol.most}" for symbol in graph.symbols]
    for node in graph:
        told = node.renamed(names)
        parts = [names[node.name], told.kind, told.op, arg_text(told.args)]
        parts += [f"{key}={arg_text(value)}" for key, value in (*told.kwargs, *told.attrs)]
        parts += [value_text(told.value), *told.views, "|", *told.writes, told.effect]
        parts.append(digest(told.inner) if told.inner is not None else "")
        lines.append(" ".join(parts))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _lines(graph: Graph, *, scopes: bool) -> Iterator[str]:
    inputs = ", ".join(f"{node.target or node.name}: {value_text(node.value)}" for node in graph.inputs)
    yield f"graph {graph.name}({inputs}) -> {', '.join(graph.signature.output_names)}"
    for symbol in graph.symbols:
        most = "" if symbol.most is None else f" to {symbol.most}"
        yield f"  {symbol.name}: {symbol.least}{most or ' and more'}"
    for node in graph:
        yield f"  {node_text(node, scopes=scopes)}"
        if node.inner is not None:
            for inner in node.inner:
                if inner.kind != "input":
                    yield f"    | {node_text(inner, scopes=False)}"
