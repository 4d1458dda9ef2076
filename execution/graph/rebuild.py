"""Our graphs back to torch.fx: the same operations on the same tensors in the graph's order.

A fused node becomes a submodule that runs its inner graph, so that a back end can put a kernel in its place. Values
die where their last use is: memory follows the order as execution.graph.liveness tells it.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from execution.graph.form import Graph
from execution.graph.node import HOLDERS, Arg, Atom, GraphError, Node, Record, Ref

Kernels = Mapping[str, nn.Module]


def rebuild(graph: Graph, kernels: Kernels | None = None) -> fx.GraphModule:
    """A module with the graph's signature that runs it; weights are shared, not copied.

    `kernels` maps names of fused nodes to modules that run in place of their inner graphs, called with the
    node's arguments. Raises GraphError for an operation that this torch does not have.
    """
    made = fx.Graph()
    root = nn.Module()
    env: dict[str, fx.Node] = {}
    for name, tensor in graph.tensors.items():
        _attach(root, name, tensor)
    for node in (*graph.inputs, *(node for node in graph if node.kind not in ("input", "output"))):
        env[node.name] = _node(made, root, node, env, kernels or {})
    _output(made, graph, env)
    made.lint()
    module = fx.GraphModule(root, made, class_name=_class_name(graph.name))
    return module.eval()


def resolve_op(op: str) -> Callable[..., Any]:
    """The callable of an operation's name. Raises GraphError."""
    head, _, rest = op.partition(".")
    try:
        if head in ("operator", "math"):
            return getattr(operator if head == "operator" else importlib.import_module("math"), rest)  # type: ignore[no-any-return]
        if head == "higher_order":
            return getattr(torch.ops.higher_order, rest)  # type: ignore[no-any-return]
        found: Any = torch.ops
        for part in op.split("."):
            found = getattr(found, part)
    except (AttributeError, ImportError):
        found = None
    if isinstance(found, torch._ops.OpOverload):
        return found
    try:
        module, _, name = op.rpartition(".")
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, ValueError) as error:
        raise GraphError(f"operation {op} is not known to torch {torch.__version__}") from error


def _node(
    made: fx.Graph, root: nn.Module, node: Node, env: Mapping[str, fx.Node], kernels: Kernels
) -> fx.Node:
    if node.kind == "input":
        return made.create_node("placeholder", node.target or node.name, name=node.name)
    if node.kind in HOLDERS:
        return made.create_node("get_attr", node.target, name=node.name)
    args = tuple(argument(arg, env) for arg in node.args)
    kwargs = {key: argument(value, env) for key, value in node.kwargs}
    if node.inner is not None:
        root.add_module(node.name, kernels[node.name] if node.name in kernels else rebuild(node.inner))
        return made.create_node("call_module", node.name, args, kwargs, name=node.name)
    return made.create_node("call_function", resolve_op(node.op), args, kwargs, name=node.name)


def argument(arg: Arg, env: Mapping[str, Any]) -> Any:
    """An argument as torch takes it, with what `env` has in place of references."""
    match arg:
        case Ref(name):
            return env[name]
        case tuple():
            return [argument(item, env) for item in arg]
        case Record((), (start, stop, step)):
            return slice(argument(start, env), argument(stop, env), argument(step, env))
        case Record(names, values):
            return {name: argument(value, env) for name, value in zip(names, values, strict=True)}
        case Atom(text):
            return _atom(text)
    return arg


def _atom(text: str) -> Any:
    kind, _, rest = text.partition(":")
    if kind == "device":
        return torch.device(rest)
    if kind == "op":
        return resolve_op(rest)
    return getattr(torch, text.removeprefix("torch."))


def _output(made: fx.Graph, graph: Graph, env: Mapping[str, fx.Node]) -> None:
    results = tuple(argument(arg, env) for arg in graph.output.args)
    in_spec, out_spec = graph.signature.in_spec, graph.signature.out_spec
    if _flat_inputs(in_spec) and _flat_output(out_spec, len(results)):
        single = len(results) == 1 and (out_spec is None or out_spec.is_leaf())
        made.output(results[0] if single else results)
        return
    if in_spec is None:  # flat inputs, nested results
        leaves = [0] * len(graph.inputs)
        in_spec = pytree.tree_flatten((tuple(leaves), {}))[1]
    made.output(results)
    names = [node.target or node.name for node in graph.inputs]
    children, keywords = in_spec.child(0), in_spec.child(1)
    if children.num_children + keywords.num_children != len(names):
        names = [f"arg_{index}" for index in range(children.num_children)] + [
            str(key) for key in keywords.context
        ]
    out_spec = out_spec or pytree.tree_flatten(results)[1]
    made.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, in_spec, out_spec)))


def _flat_inputs(spec: Any) -> bool:
    """Whether arguments are tensors (or constants) one by one, none nested."""
    if spec is None:
        return True
    args, kwargs = spec.child(0), spec.child(1)
    return all(child.is_leaf() for child in (*args.children(), *kwargs.children()))


def _flat_output(spec: Any, results: int) -> bool:
    """Whether the result is one tensor or a plain tuple of tensors."""
    if spec is None or spec.is_leaf():
        return spec is None or results == 1
    return spec.type is tuple and all(child.is_leaf() for child in spec.children())


def _attach(root: nn.Module, name: str, value: Any) -> None:
    *path, last = name.split(".")
    place = root
    for part in path:
        if part not in place._modules:
            place.add_module(part, nn.Module())
        place = place.get_submodule(part)
    if isinstance(value, nn.Parameter):
        place.register_parameter(last, value)
    elif isinstance(value, torch.Tensor):
        place.register_buffer(last, value, persistent=False)
    elif isinstance(value, nn.Module):
        place.add_module(last, value)
    else:
        setattr(place, last, value)


def _class_name(name: str) -> str:
    words = "".join(char if char.isalnum() else "_" for char in name).strip("_")
    return words if words and not words[0].isdigit() else f"Graph_{words}"
