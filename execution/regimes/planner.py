"""What a variant should cost, before it is built: work, traffic and launches of its graph; and what to build first.

The model only ranks; what runs is decided by measurement (execution.regimes.dispatcher).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from execution.graph.form import Graph
from execution.graph.node import GETITEM

if TYPE_CHECKING:
    from execution.regimes.recipe import Recipe

_HEAVY = ("linear", "mm", "bmm", "baddbmm", "addmm", "conv", "scaled_dot_product", "matmul")


@dataclass(frozen=True, slots=True)
class CostModel:
    """One core of an ordinary server; `execution.regimes.dispatcher` learns the rest."""

    flops_per_s: float = 4e10
    bytes_per_s: float = 1e10
    launch_s: float = 6e-6
    """An operation through torch's dispatcher and Python."""
    compiled_launch_s: float = 1e-6
    eager_build_s: float = 4.0
    compile_s_per_operation: float = 0.15


def predicted_s(graph: Graph, recipe: Recipe, costs: CostModel) -> float:
    """Seconds of a call: each operation's roofline, and its launch; compiled, elementwise ones melt together."""
    compiled = recipe.back_end == "inductor"
    total = 0.0
    for node in graph.calls:
        if node.op == GETITEM or node.views:
            continue
        cost = graph.cost(node.name)
        heavy = any(word in node.op for word in _HEAVY)
        traffic_s = cost.bytes / costs.bytes_per_s
        if compiled and not heavy:
            total += traffic_s / 2
            continue
        launch_s = costs.compiled_launch_s if compiled else costs.launch_s
        total += max(cost.flops / costs.flops_per_s, traffic_s) + launch_s
    return total


def build_order(recipes: Iterable[Recipe]) -> list[Recipe]:
    """What is quick to build first, so that a new mix is better served within seconds; then what is compiled, the
    most transformed first."""
    return sorted(recipes, key=lambda r: (r.back_end != "eager", -r.pipeline.count(","), r.name))
