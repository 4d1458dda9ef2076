"""Attention without dropout draws no random numbers: said so, it may be moved, merged and dropped.

torch marks `scaled_dot_product_attention` as random for the dropout that it could do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from execution.graph.form import Graph
from execution.graph.node import Node
from execution.passes.base import register

_DROPOUT_ARGUMENT: Final = {"aten.scaled_dot_product_attention.default": 4}


@register("calm")
@dataclass(frozen=True, slots=True)
class Calm:
    """Pass: take the mark `random` from attention with a dropout of zero."""

    def __call__(self, graph: Graph) -> Graph:
        """Bit-exact; the very same graph where there is none."""
        if not any(_idle(node) for node in graph):
            return graph
        return graph.replace(nodes=[replace(node, effect="") if _idle(node) else node for node in graph])


def _idle(node: Node) -> bool:
    place = _DROPOUT_ARGUMENT.get(node.op)
    if place is None or node.effect != "random":
        return False
    dropout = node.args[place] if len(node.args) > place else dict(node.kwargs).get("dropout_p", 0.0)
    return bool(dropout == 0.0)
