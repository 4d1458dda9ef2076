"""How operations carry a dimension through: which rows of its inputs some rows of a value need.

A *track* says along which dimension every value of a graph is cut: dimension 0 (rows of a batch), or the height of
images. Most operations are pointwise along it; convolutions and pools reach a few rows further (their halo), some
scale it. What none of the rules fits cannot be cut.

    track = tracked(graph, 2)
    track.axis["relu"], track.rules["conv2d"]       # 2, Reach(kernel=3, stride=1, padding=1)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.utils import _pytree as pytree

from execution.graph.form import Graph
from execution.graph.node import HOLDERS, Arg, Node, TensorValue
from execution.graph.rebuild import argument, resolve_op

Span = tuple[int, int]
"""Rows from the first to before the second."""


@dataclass(frozen=True, slots=True)
class Pointwise:
    """Row i of the value needs row i of each input that is cut."""

    def needs(self, rows: Span, _length: int, /) -> Span:
        """Rows of an input."""
        return rows


@dataclass(frozen=True, slots=True)
class Reach:
    """Row i needs rows i * stride - padding and `kernel - 1` more: convolutions and pools."""

    kernel: int
    stride: int
    padding: int
    place: int
    """Of the padding among the arguments."""

    def needs(self, rows: Span, length: int, /) -> Span:
        """Rows of an input; at an edge those that are there, from a multiple of the stride on."""
        first = rows[0] * self.stride - self.padding
        last = min(length, (rows[1] - 1) * self.stride - self.padding + self.kernel)
        if first > 0 and last < length:
            return first, last
        return max(0, first) // self.stride * self.stride, last

    def gives(self, rows: Span, length: int) -> tuple[Span, bool]:
        """Rows that the operation gives for these of its input; whether it must not pad (no edge is near)."""
        inner = rows[0] > 0 and rows[1] < length and (rows[0] + self.padding) % self.stride == 0
        padding = 0 if inner else self.padding
        count = (rows[1] - rows[0] + 2 * padding - self.kernel) // self.stride + 1
        first = (rows[0] + self.padding - padding) // self.stride
        return (first, first + count), inner


@dataclass(frozen=True, slots=True)
class Scale:
    """Each row becomes `factor` rows: upsampling, and transposed convolutions whose stride is their kernel."""

    factor: int

    def needs(self, rows: Span, length: int, /) -> Span:
        """Rows of the input."""
        return rows[0] // self.factor, min(length, -(-rows[1] // self.factor))


Rule = Pointwise | Reach | Scale


@dataclass(frozen=True, slots=True)
class Track:
    """A graph along one dimension."""

    dimension: int
    axis: Mapping[str, int]
    """Where each value is cut, if it can be."""
    rules: Mapping[str, Rule]
    """Of the operations that can be cut."""


def tracked(graph: Graph, dimension: int) -> Track:
    """Follow a dimension of the inputs through a graph of fixed sizes."""
    axis: dict[str, int] = {}
    rules: dict[str, Rule] = {}
    for node in graph:
        if node.kind in HOLDERS or node.kind == "output":
            continue
        found = _rule(graph, node, axis, dimension) if node.pure and node.inner is None else None
        if found is not None:
            rules[node.name], axis[node.name] = found
        elif isinstance(node.value, TensorValue) and _size(node.value, dimension) > 1:
            axis[node.name] = dimension  # it can be cut, though the operation that gave it cannot
    return Track(dimension, axis, rules)


def length_of(graph: Graph, name: str, axis: int) -> int:
    """Rows of a value; of a value with several tensors, those of the first."""
    value = graph[name].value
    while isinstance(value, tuple):
        value = value[0]
    return _size(value, axis) if isinstance(value, TensorValue) else 0


def cut_refs(node: Node, axis: Mapping[str, int]) -> list[str]:
    """What a node takes and what is cut of it."""
    return [name for name in node.refs() if name in axis]


_CONVOLUTION: Final = "aten.conv2d.default"
_TRANSPOSED: Final = "aten.conv_transpose2d.input"
_UPSAMPLE: Final = "aten.upsample_nearest2d.vec"
_POOLS: Final = ("aten.max_pool2d.default", "aten.avg_pool2d.default")
HALO_OPS: Final = (_CONVOLUTION, _TRANSPOSED, *_POOLS)
"""They want contiguous inputs, or copy them unseen."""


def _rule(graph: Graph, node: Node, axis: Mapping[str, int], dimension: int) -> tuple[Rule, int] | None:
    cut = cut_refs(node, axis)
    if not cut:
        return None
    if dimension == 2 and node.op in (*HALO_OPS, _UPSAMPLE):
        own = node.args[0]
        if cut != [own.name] or axis[own.name] != dimension:
            return None
        rule = _spatial(graph, node)
        return None if rule is None else (rule, dimension)
    lengths = {length_of(graph, name, axis[name]) for name in cut}
    if len(lengths) != 1 or (length := lengths.pop()) < 2:
        return None
    place = _carried(graph, node, axis, length)
    return None if place is None else (Pointwise(), place)


def _spatial(graph: Graph, node: Node) -> Rule | None:
    args = node.args
    if node.op == _CONVOLUTION:
        plain = _first(args, 5, 1) == 1 and not isinstance(_at(args, 4), str)
        kernel = length_of(graph, args[1].name, 2)
        return Reach(kernel, _first(args, 3, 1), _first(args, 4, 0), 4) if plain and kernel else None
    if node.op == _TRANSPOSED:
        plain = _first(args, 4, 0) == 0 and _first(args, 5, 0) == 0 and _first(args, 7, 1) == 1
        kernel = length_of(graph, args[1].name, 2)
        return Scale(kernel) if plain and kernel and kernel == _first(args, 3, 1) else None
    if node.op == _UPSAMPLE:
        before, after = length_of(graph, args[0].name, 2), length_of(graph, node.name, 2)
        return Scale(after // before) if after % before == 0 else None
    kernel = _first(args, 1, 1)
    ceil = _at(args, 5 if node.op == _POOLS[0] else 4)
    if ceil or (node.op == _POOLS[0] and _first(args, 4, 1) != 1):
        return None
    return Reach(kernel, _first(args, 2, kernel), _first(args, 3, 0), 3)


def _carried(graph: Graph, node: Node, axis: Mapping[str, int], length: int) -> int | None:
    """Dimension of the value along which fewer rows of the inputs give fewer rows; None: not just so."""
    fewer = length - 1
    env: dict[str, Any] = {}
    for name in node.refs():
        cut = axis.get(name)
        env[name] = pytree.tree_map(
            lambda value, cut=cut: _meta(value, cut, fewer),
            graph[name].value,
            is_leaf=lambda v: isinstance(v, TensorValue),
        )
    try:
        with torch.no_grad():
            args = [argument(arg, env) for arg in with_rows(node, node.args, length, fewer)]
            made = resolve_op(node.op)(*args, **{key: argument(arg, env) for key, arg in node.kwargs})
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None
    was = [value for value in pytree.tree_leaves(node.value) if isinstance(value, TensorValue)]
    now = [value for value in pytree.tree_leaves(made) if isinstance(value, torch.Tensor)]
    if not was or len(was) != len(now):
        return None
    places = {_changed(old, new, length, fewer) for old, new in zip(was, now, strict=True)}
    return places.pop() if len(places) == 1 else None


def with_rows(node: Node, args: tuple[Arg, ...], length: int, rows: int) -> tuple[Arg, ...]:
    """The arguments for so many rows: shapes told to views start with them."""
    if node.op in ("aten.view.default", "aten.reshape.default", "aten.expand.default"):
        shape = args[1]
        if isinstance(shape, tuple) and shape and shape[0] == length:
            return (args[0], (rows, *shape[1:]), *args[2:])
    return args


def without_padding(node: Node, rule: Reach) -> tuple[Arg, ...]:
    """The arguments with no padding of the height."""
    args = list(node.args)
    if rule.padding:
        told = args[rule.place]
        args[rule.place] = (0, told[-1] if isinstance(told, tuple) else told)
    return tuple(args)


def _meta(value: Any, cut: int | None, rows: int) -> Any:
    if not isinstance(value, TensorValue):
        return value
    shape = [int(dim) for dim in value.shape]
    if cut is not None:
        shape[cut] = rows
    return torch.empty(shape, dtype=getattr(torch, value.dtype), device="meta")


def _changed(old: TensorValue, new: torch.Tensor, length: int, fewer: int) -> int | None:
    if len(old.shape) != new.dim():
        return None
    places = [i for i, (a, b) in enumerate(zip(old.shape, new.shape, strict=True)) if a != b]
    if len(places) != 1 or (old.shape[places[0]], new.shape[places[0]]) != (length, fewer):
        return None
    return places[0]


def _size(value: TensorValue | Any, axis: int) -> int:
    if not isinstance(value, TensorValue) or len(value.shape) <= axis:
        return 0
    size = value.shape[axis]
    return size if isinstance(size, int) else 0


def _at(args: tuple[Arg, ...], place: int) -> Arg:
    return args[place] if len(args) > place else None


def _first(args: tuple[Arg, ...], place: int, default: int) -> int:
    """Of an argument that may be a number, a pair or missing."""
    found = _at(args, place)
    if isinstance(found, tuple):
        return int(found[0]) if found else default
    return default if found is None or isinstance(found, str) else int(found)
