"""Elementwise chains become one node each: a fused kernel reads its inputs once and writes its results once."""

from __future__ import annotations

from dataclasses import dataclass

from execution.graph.cost import base_name
from execution.graph.form import Graph
from execution.graph.node import Node, Ref, TensorValue
from execution.passes.base import register
from execution.passes.group import Clusters, Group, external_inputs, fuse, fusible
from execution.passes.memory import written_roots

POINTWISE = frozenset(
    [
        "abs",
        "add",
        "addcdiv",
        "addcmul",
        "bitwise_and",
        "bitwise_not",
        "bitwise_or",
        "bitwise_xor",
        "ceil",
        "clamp",
        "clamp_max",
        "clamp_min",
        "cos",
        "div",
        "elu",
        "eq",
        "erf",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "fmod",
        "ge",
        "gelu",
        "gt",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "hypot",
        "le",
        "leaky_relu",
        "lerp",
        "log",
        "log1p",
        "log2",
        "log10",
        "logical_and",
        "logical_not",
        "logical_or",
        "lt",
        "masked_fill",
        "maximum",
        "minimum",
        "mish",
        "mul",
        "ne",
        "neg",
        "pow",
        "reciprocal",
        "relu",
        "remainder",
        "round",
        "rsqrt",
        "rsub",
        "sigmoid",
        "sign",
        "silu",
        "sin",
        "softplus",
        "sqrt",
        "square",
        "sub",
        "tan",
        "tanh",
        "true_divide",
        "trunc",
        "where",
        "xlogy",
        "_to_copy",
        "to",
    ]
)
"""Operations whose every output element depends on one element of each input."""


@register("fuse_elementwise")
@dataclass(frozen=True, slots=True)
class FuseElementwise:
    """Group connected elementwise operations over one shape; inputs may be broadcast.

    The inner graph runs the same operations, so that a graph is bit-exact as long as no back end replaces it.
    """

    max_inputs: int = 8
    """Tensors that one fused node takes at most."""
    max_nodes: int = 32
    min_nodes: int = 2

    def __call__(self, graph: Graph) -> Graph:
        """Bit-exact through torch."""
        clusters, written = Clusters(graph), written_roots(graph)
        wanted = {node.name for node in graph if _fits(graph, node, written)}
        groups = []
        for node in reversed(graph.calls):
            if node.name not in wanted:
                continue
            members = self._grown(graph, node, wanted)
            if len(members) >= self.min_nodes and clusters.joinable(members):
                clusters.join(members)
                wanted -= members
                groups.append(Group("elementwise", tuple(sorted(members))))
        return fuse(graph, groups)

    def _grown(self, graph: Graph, last: Node, wanted: set[str]) -> set[str]:
        """A node and all before it that only this group uses, as far as the limits go."""
        members = {last.name}
        pending = [last.name]
        while pending:
            for ref in graph[pending.pop(0)].refs():
                if ref in members or ref not in wanted or not members.issuperset(graph.users[ref]):
                    continue
                more = members | {ref}
                if (
                    graph[ref].value.shape == last.value.shape  # type: ignore[union-attr]
                    and len(more) <= self.max_nodes
                    and len(external_inputs(graph, more)) <= self.max_inputs
                ):
                    members = more
                    pending.append(ref)
        return members


def _fits(graph: Graph, node: Node, written: frozenset[str]) -> bool:
    if not fusible(node) or not graph.users[node.name] or node.views or base_name(node.op) not in POINTWISE:
        return False
    if written.intersection(graph.storages[node.name]) or not isinstance(node.value, TensorValue):
        return False
    return any(isinstance(arg, Ref) for arg in node.args) and not _rounding_mode(node)


def _rounding_mode(node: Node) -> bool:
    return any(key == "rounding_mode" and value is not None for key, value in node.kwargs)
