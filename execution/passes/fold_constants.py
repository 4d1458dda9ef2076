"""Constant folding: what depends on weights and constants alone is computed once, not at every call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from execution.graph.evaluate import evaluate
from execution.graph.form import Graph
from execution.graph.node import HOLDERS, Node, TensorValue
from execution.passes.base import register
from execution.passes.memory import result_roots, written_roots

_MIB = 1 << 20


@register("fold_constants")
@dataclass(frozen=True, slots=True)
class FoldConstants:
    """Replace constant expressions by their values. Weights count as constants: fold again when they change.

    What a buffer that is written to takes part in is not folded, nor is what draws random numbers.
    """

    weights: bool = True
    """Whether parameters and buffers count as constants; else only constants do."""
    max_mib: int = 64
    """Memory that one new constant may take beyond what it is made from."""

    def __call__(self, graph: Graph) -> Graph:
        """Bit-exact on the machine that folds."""
        known = self._constant(graph)
        wanted = [name for name in _frontier(graph, known) if self._fits(graph, name)]
        if not wanted:
            return graph
        values = evaluate(graph, wanted)
        made, tensors = {}, {}
        for name in wanted:
            value = values[name].detach()
            target = f"folded.{name}"
            while target in graph.tensors:
                target += "_"
            tensors[target] = (
                value if value.is_contiguous() else value.clone(memory_format=torch.preserve_format)
            )
            made[name] = Node(
                name,
                "constant",
                "constant",
                value=_value(tensors[target]),
                target=target,
                scope=graph[name].scope,
            )
        first = [node for node in graph if node.kind != "call"]
        nodes = [
            *first[:-1],
            *made.values(),
            *(node for node in graph.calls if node.name not in made),
            first[-1],
        ]
        return graph.replace(nodes=nodes, tensors=tensors)

    def _constant(self, graph: Graph) -> set[str]:
        """Nodes whose value is the same at every call."""
        written = written_roots(graph)
        kinds = HOLDERS if self.weights else ("constant",)
        known: set[str] = set()
        for node in graph:
            if written.intersection(graph.storages[node.name]):
                continue
            held = node.kind in kinds and isinstance(node.value, TensorValue)
            computed = node.pure and not _uninitialised(node) and known.issuperset(node.refs())
            if held or (computed and (_has_tensor(node) or isinstance(node.value, tuple))):
                known.add(node.name)
        return known

    def _fits(self, graph: Graph, name: str) -> bool:
        before = sum(graph.value_bytes(ref) for ref in _sources(graph, name))
        return graph.value_bytes(name) - before <= self.max_mib * _MIB


def _frontier(graph: Graph, known: set[str]) -> Iterator[str]:
    """Constant tensors that something takes which is not constant; a mere view of a weight is left as it is."""
    results = result_roots(graph)
    for node in graph.calls:
        if node.name not in known or not isinstance(node.value, TensorValue):
            continue
        taken = any(user not in known for user in graph.users[node.name])
        made = any(not graph[name].views for name in _chain(graph, node.name))
        if taken and made and not results.intersection(graph.storages[node.name]):
            yield node.name


def _chain(graph: Graph, name: str) -> list[str]:
    """Calls that a constant is computed by."""
    found: dict[str, None] = {}
    pending = [name]
    while pending:
        each = pending.pop()
        if each not in found and graph[each].kind == "call":
            found[each] = None
            pending.extend(graph[each].refs())
    return list(found)


def _sources(graph: Graph, name: str) -> set[str]:
    return {ref for each in _chain(graph, name) for ref in graph[each].refs() if graph[ref].kind in HOLDERS}


def _has_tensor(node: Node) -> bool:
    if not isinstance(node.value, TensorValue):
        return False
    return all(isinstance(dim, int) for dim in node.value.shape)


def _uninitialised(node: Node) -> bool:
    return "empty" in node.op


def _value(tensor: torch.Tensor) -> TensorValue:
    return TensorValue(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tuple(tensor.stride()))
