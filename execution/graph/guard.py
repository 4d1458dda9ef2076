"""A captured part in its place: the graph for inputs that it was captured for, the original for all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from execution.graph.form import Graph
from execution.graph.node import Dim, GraphError, Node, ScalarValue, TensorValue, is_contiguous, resolve


class Guarded(nn.Module):
    """Runs `compiled` where structure, shapes and types of the inputs fit the graph; else `original`."""

    def __init__(self, original: nn.Module, graph: Graph, compiled: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.compiled = compiled
        self._nodes = graph.inputs
        self._dense = {
            node.name: isinstance(node.value, TensorValue) and is_contiguous(node.value)
            for node in graph.inputs
        }
        self._spec = graph.signature.in_spec
        self._ranges = {symbol.name: (symbol.least, symbol.most) for symbol in graph.symbols}
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the original."""
        chosen = self.compiled if self.admits(args, kwargs) else self.original
        return chosen(*args, **kwargs)

    def admits(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether the graph is right for these inputs."""
        if self.training:
            return False
        leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
        if len(leaves) != len(self._nodes) or (self._spec is not None and spec != self._spec):
            return False
        sizes: dict[str, int] = {}
        later: list[tuple[Dim, int]] = []
        for node, leaf in zip(self._nodes, leaves, strict=True):
            if not _fits(node, leaf, sizes, later) or (self._dense[node.name] and not leaf.is_contiguous()):
                return False
        try:
            if any(resolve(dim, sizes) != size for dim, size in later):
                return False
        except GraphError:
            return False
        return all(
            least <= sizes.get(name, least) and (most is None or sizes.get(name, least) <= most)
            for name, (least, most) in self._ranges.items()
        )


def _fits(node: Node, leaf: Any, sizes: dict[str, int], later: list[tuple[Dim, int]]) -> bool:
    """Whether an input is like the captured one; notes sizes of symbols, and expressions to check in the end."""
    told = node.value
    if isinstance(told, TensorValue):
        return (
            isinstance(leaf, torch.Tensor)
            and leaf.dim() == len(told.shape)
            and str(leaf.dtype) == f"torch.{told.dtype}"
            and all(
                _size_fits(dim, size, sizes, later) for dim, size in zip(told.shape, leaf.shape, strict=True)
            )
        )
    if isinstance(told, ScalarValue) and told.kind == "int":
        return type(leaf) is int and _size_fits(told.expression, leaf, sizes, later)
    return bool(node.args) and type(leaf) is type(node.args[0]) and leaf == node.args[0]


def _size_fits(dim: Dim, size: int, sizes: dict[str, int], later: list[tuple[Dim, int]]) -> bool:
    if isinstance(dim, int):
        return dim == size
    if dim.isidentifier():
        return sizes.setdefault(dim, size) == size
    later.append((dim, size))
    return True
