"""Builds a graph anew, node by node: new operations get their shapes, strides and views from torch's meta device.

    editor = Editor(graph)
    for node in graph: editor.copy(node)                    # or instead of some of them:
    stacked = editor.call("aten.stack.default", (a, b), 0)
    editor.stand_in("old", stacked)                         # what took `old` takes this from now on
    return editor.finish()

For graphs of fixed sizes: raises GraphError for one with symbols. A copied node whose arguments changed is inferred
anew; a `view` that the new strides do not allow becomes a `reshape`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from execution.graph.form import Graph
from execution.graph.node import Arg, Atom, GraphError, Node, Record, Ref, TensorValue, Value, map_args
from execution.graph.rebuild import resolve_op


class Editor:
    """A graph in the making."""

    def __init__(self, graph: Graph) -> None:
        if graph.symbols:
            names = ", ".join(symbol.name for symbol in graph.symbols)
            raise GraphError(f"{graph.name}: sizes vary ({names}): specialise the graph to a shape first")
        self._graph = graph
        self._nodes: dict[str, Node] = {}
        self._metas: dict[str, Any] = {}
        self._stand_ins: dict[str, Ref] = {}
        self._changed: set[str] = set()
        self._tensors: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._nodes or name in self._stand_ins

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Of a tensor that the graph has by now."""
        return tuple(self._metas[self.now(ref).name].shape)

    def now(self, ref: Ref) -> Ref:
        """What stands for a node of the old graph."""
        return self._stand_ins.get(ref.name, ref)

    def stand_in(self, name: str, ref: Ref) -> None:
        """From now on, what took the old node `name` takes `ref`."""
        self._stand_ins[name] = ref
        self._changed.add(name)

    def hold(self, hint: str, tensor: torch.Tensor) -> Ref:
        """A tensor of the graph's own: packed weights, folded constants."""
        name = self._fresh(hint)
        value = _value(tensor)
        self._tensors[name] = tensor
        return self._put(Node(name, "constant", "constant", value=value, target=name), tensor.to("meta"))

    def call(self, op: str, *args: Arg, hint: str = "", kwargs: tuple[tuple[str, Arg], ...] = ()) -> Ref:
        """A new operation. Raises GraphError when its arguments do not fit it."""
        name = self._fresh(hint or op.split(".")[1])
        return self._put(*self._infer(Node(name, "call", op, self._new(args), self._new(kwargs))))

    def write(self, op: str, target: Ref, *args: Arg) -> Ref:
        """A new operation that writes to its first argument."""
        name = self._fresh(op.split(".")[1])
        node = Node(name, "call", op, self._new((target, *args)), writes=(self.now(target).name,))
        return self._put(*self._infer(node))

    def copy(self, node: Node) -> None:
        """A node of the old graph, taking what stands for its arguments."""
        if node.name in self._stand_ins:
            return
        if self._changed.isdisjoint((*node.refs(), *node.views, *node.writes)):
            self._nodes[node.name] = node
            self._metas[node.name] = _meta(node.value)
            return
        names = {name: ref.name for name, ref in self._stand_ins.items()}
        moved = node.renamed(names)
        if node.kind != "call" or node.inner is not None:
            self._nodes[node.name] = moved
            self._metas[node.name] = _meta(node.value)
            return
        renewed, meta = self._infer(moved)
        if renewed.value != node.value or renewed.op != node.op:
            self._changed.add(node.name)
        self._put(renewed, meta)

    def finish(self) -> Graph:
        """The new graph."""
        return self._graph.replace(nodes=self._nodes.values(), tensors=self._tensors)

    def _put(self, node: Node, meta: Any) -> Ref:
        self._nodes[node.name] = node
        self._metas[node.name] = meta
        return Ref(node.name)

    def _fresh(self, hint: str) -> str:
        name, tries = hint, 0
        while (
            name in self._nodes or name in self._graph or name in self._tensors or name in self._graph.tensors
        ):
            tries += 1
            name = f"{hint}_{tries}"
        return name

    def _new(self, args: Any) -> Any:
        return map_args(args, lambda arg: self.now(arg) if isinstance(arg, Ref) else arg)

    def _infer(self, node: Node) -> tuple[Node, Any]:
        try:
            return self._run(node)
        except (RuntimeError, TypeError, ValueError) as error:
            if node.op == "aten.view.default":
                return self._infer(_with_op(node, "aten.reshape.default"))
            told = str(error).splitlines()[0]
            raise GraphError(
                f"{self._graph.name}: {node.name} ({node.op}) cannot be built: {told}"
            ) from error

    def _run(self, node: Node) -> tuple[Node, Any]:
        args = [_real(arg, self._metas) for arg in node.args]
        kwargs = {key: _real(value, self._metas) for key, value in node.kwargs}
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        with torch.no_grad():
            meta = resolve_op(node.op)(*args, **kwargs)
        made = {
            leaf.untyped_storage()._cdata
            for leaf in pytree.tree_leaves(meta)
            if isinstance(leaf, torch.Tensor)
        }
        views = tuple(
            name
            for name in node.refs()
            if any(
                isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata in made
                for leaf in pytree.tree_leaves(self._metas[name])
            )
        )
        told = Node(
            node.name, "call", node.op, node.args, node.kwargs, _value(meta),
            views=views, writes=node.writes, effect=node.effect, scope=node.scope,
        )  # fmt: skip
        return told, meta


def atom(told: Atom) -> Any:
    """The dtype, layout or device of that name."""
    kind, _, rest = told.text.partition(":")
    return torch.device(rest) if kind == "device" else getattr(torch, told.text.removeprefix("torch."))


def _with_op(node: Node, op: str) -> Node:
    return Node(node.name, node.kind, op, node.args, node.kwargs, scope=node.scope, writes=node.writes)


def _meta(value: Value) -> Any:
    match value:
        case TensorValue(shape, dtype, strides):
            kind = getattr(torch, dtype)
            if len(strides) == len(shape):
                return torch.empty_strided(shape, strides, dtype=kind, device="meta")  # type: ignore[arg-type]
            return torch.empty(shape, dtype=kind, device="meta")  # type: ignore[arg-type]
        case tuple():
            return tuple(_meta(item) for item in value)
    return None


def _real(arg: Arg, metas: dict[str, Any]) -> Any:
    match arg:
        case Ref(name):
            return metas[name]
        case tuple():
            return [_real(item, metas) for item in arg]
        case Record((), (start, stop, step)):
            return slice(start, stop, step)
        case Atom(text):
            return atom(Atom(text))
    return arg


def _value(made: Any) -> Value:
    if isinstance(made, torch.Tensor):
        return TensorValue(tuple(made.shape), str(made.dtype).removeprefix("torch."), tuple(made.stride()))
    if isinstance(made, list | tuple):
        return tuple(_value(item) for item in made)
    return None
