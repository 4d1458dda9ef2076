"""Classes of operations, as a picture tells them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from execution.graph.cost import base_name, is_movement
from execution.graph.node import GETITEM, Node, tensors_of


@dataclass(frozen=True, slots=True)
class OpClass:
    """A colour and what it stands for."""

    name: str
    fill: str
    edge: str


CLASSES: Final = {
    made.name: made
    for made in (
        OpClass("matmul", "#cfe0fb", "#3b6fc4"),
        OpClass("attention", "#dccff7", "#6f4bc4"),
        OpClass("norm", "#cdebd9", "#2f8a5b"),
        OpClass("reduction", "#d9ecc4", "#5f8a1f"),
        OpClass("elementwise", "#fbe6c2", "#b9801a"),
        OpClass("fused", "#ffd9b0", "#c4571a"),
        OpClass("movement", "#e3e3e8", "#6d6d78"),
        OpClass("view", "#f6f6f8", "#b4b4be"),
        OpClass("effect", "#f9cfd4", "#b8364a"),
        OpClass("interface", "#ffffff", "#44444c"),
    )
}

_MATMULS: Final = (
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "matmul",
    "linear",
    "conv",
    "einsum",
    "lstm",
    "gru",
    "_int_mm",
)
_REDUCTIONS: Final = frozenset(
    [
        "sum",
        "mean",
        "amax",
        "amin",
        "max",
        "min",
        "argmax",
        "argmin",
        "prod",
        "any",
        "all",
        "cumsum",
        "var",
        "std",
        "topk",
    ]
)


def class_of(node: Node) -> OpClass:
    """The class of one node."""
    return CLASSES[_class_name(node)]


def _class_name(node: Node) -> str:
    name = base_name(node.op)
    tests = {
        "interface": node.kind != "call",
        "fused": node.inner is not None,
        "effect": bool(node.effect or node.writes),
        "view": node.op == GETITEM or bool(node.views) or not tensors_of(node.value),
        "attention": "attention" in name,
        "matmul": name.startswith(_MATMULS) or name.endswith("_mm"),
        "norm": "norm" in name or "softmax" in name,
        "reduction": name in _REDUCTIONS
        or name.startswith(("var_", "std_", "max_pool", "avg_pool", "adaptive")),
        "movement": is_movement(name),
    }
    return next((kind for kind, fits in tests.items() if fits), "elementwise")
