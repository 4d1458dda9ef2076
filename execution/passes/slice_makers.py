"""Three makers of sliced regions: into a graph, on tensors (to see that every bit is the same), and counting bytes.

Bits: which products a kernel adds in which order depends on shapes, not on values. A slice is compared with the same
rows of the whole value on random inputs, operation by operation: where another kernel, or another blocking, is chosen
for a slice's shape, bits differ somewhere, and the operation is not cut so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from execution.graph.form import Graph
from execution.graph.node import HOLDERS, Atom, Node, Ref, TensorValue, map_args
from execution.graph.rebuild import argument, resolve_op
from execution.passes.editor import Editor
from execution.passes.memory_reuse import IN_PLACE
from execution.passes.slice_region import Region
from execution.passes.slice_rules import Span, length_of


class GraphMaker:
    """Into an editor's graph."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor

    def whole(self, name: str) -> Ref:
        """What stands for it now."""
        return self._editor.now(Ref(name))

    def narrow(self, value: Ref, axis: int, start: int, length: int) -> Ref:
        """A view."""
        return self._editor.call("aten.slice.Tensor", value, axis, start, start + length)

    def contiguous(self, value: Ref) -> Ref:
        """A copy."""
        kwargs = (("memory_format", Atom("torch.contiguous_format")),)
        return self._editor.call("aten.clone.default", value, kwargs=kwargs)

    def call(self, node: Node, args: tuple[Any, ...], env: Mapping[str, Ref], _rows: int) -> Ref:
        """A node like the old one."""

        def swap(arg: Any) -> Any:
            return env.get(arg.name, arg) if isinstance(arg, Ref) else arg

        kwargs = tuple((key, map_args(arg, swap)) for key, arg in node.kwargs)
        return self._editor.call(node.op, *map_args(args, swap), hint=node.name, kwargs=kwargs)

    def room(self, node: Node) -> Ref:
        """Empty memory."""
        value = node.value
        assert isinstance(value, TensorValue)  # noqa: S101 Region.of looked
        kwargs = (("dtype", Atom(f"torch.{value.dtype}")), ("device", Atom("device:cpu")))
        return self._editor.call(
            "aten.empty_strided.default", value.shape, value.strides, hint=f"{node.name}_room", kwargs=kwargs
        )

    def put(self, room: Ref, axis: int, start: int, value: Ref, length: int) -> None:
        """A copy in place."""
        self._editor.write("aten.copy_.default", self.narrow(room, axis, start, length), value)

    def done(self, name: str, room: Ref) -> None:
        """A view that comes after all writes."""
        self._editor.stand_in(name, self._editor.call("aten.alias.default", room, hint=f"{name}_all"))

    def piece(self, _name: str, _axis: int, value: Ref, _held: Span, _needed: Span) -> Ref:
        """As it is."""
        return value


class TensorMaker:
    """On random tensors: `different` names the operations whose slices have other bits than the whole."""

    def __init__(self, region: Region, generator: torch.Generator) -> None:
        self._graph = region.graph
        self._env = _random_values(region, generator)
        self.different: set[str] = set()

    def whole(self, name: str) -> Any:
        """The value itself."""
        return self._env[name]

    def narrow(self, value: Any, axis: int, start: int, length: int) -> Any:
        """A view of each tensor."""
        return pytree.tree_map(lambda tensor: tensor.narrow(axis, start, length), value)

    def contiguous(self, value: torch.Tensor) -> torch.Tensor:
        """A copy."""
        return value.clone(memory_format=torch.contiguous_format)

    def call(self, node: Node, args: tuple[Any, ...], env: Mapping[str, Any], _rows: int) -> Any:
        """Run it."""
        return _call(node, args, {**self._env, **env})

    def room(self, node: Node) -> torch.Tensor:
        """Its own memory."""
        return torch.empty_like(self._env[node.name])

    def put(self, room: torch.Tensor, axis: int, start: int, value: torch.Tensor, length: int) -> None:
        """As the graph does."""
        room.narrow(axis, start, length).copy_(value)

    def done(self, _name: str, _room: torch.Tensor) -> None:
        """Compared piece by piece before."""

    def piece(self, name: str, axis: int, value: Any, held: Span, needed: Span) -> Any:
        """Compare the rows that are needed; what is wrong is mended, so that nobody else is blamed for it."""
        mine = self.narrow(value, axis, needed[0] - held[0], needed[1] - needed[0])
        theirs = self.narrow(self._env[name], axis, needed[0], needed[1] - needed[0])
        pairs = list(zip(pytree.tree_leaves(mine), pytree.tree_leaves(theirs), strict=True))
        if all(_same_bits(a, b) for a, b in pairs):
            return value
        self.different.add(name)
        for a, b in pairs:
            a.copy_(b)
        return value


@dataclass(frozen=True, slots=True)
class Held:
    """A value whose bytes are counted."""

    base: int
    """The operation that allocated its memory; -1: memory from outside the region."""
    rows: int
    bytes: int
    whole: bool
    """All of its memory, and no view of it."""


class ByteMaker:
    """Counts the bytes that a region needs beyond what was live before it, with writes in place of what dies."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._rooms = 0
        self._sizes: list[int] = []
        self._touches: list[tuple[int, ...]] = []
        self._reuses: list[tuple[int, ...]] = []

    def whole(self, name: str) -> Held:
        """Not counted here."""
        graph, axis = self._region.graph, self._region.track.axis[name]
        return Held(-1, length_of(graph, name, axis), graph.value_bytes(name), whole=True)

    def narrow(self, value: Held, _axis: int, _start: int, length: int) -> Held:
        """The same memory."""
        return Held(value.base, length, value.bytes * length // max(1, value.rows), whole=False)

    def contiguous(self, value: Held) -> Held:
        """As many bytes again."""
        return self._made(value.rows, value.bytes, (value.base,))

    def call(self, node: Node, _args: tuple[Any, ...], env: Mapping[str, Held], rows: int) -> Held:
        """Bytes in proportion to the rows."""
        graph, axis = self._region.graph, self._region.track.axis[node.name]
        size = graph.value_bytes(node.name) * rows // max(1, length_of(graph, node.name, axis))
        taken = list(env.values())
        if node.views:
            base = next((value.base for value in taken), -1)
            return Held(base, rows, size, whole=False)
        places = IN_PLACE[node.op][1] if node.op in IN_PLACE else ()
        over = [env[node.args[at].name] for at in places if _named(node, at) in env]
        reuses = tuple(v.base for v in over if v.whole and v.base >= 0 and v.bytes == size)
        return self._made(rows, size, tuple(value.base for value in taken), reuses)

    def room(self, node: Node) -> Held:
        """Live through all slices."""
        size = self._region.graph.value_bytes(node.name)
        self._rooms += size
        return Held(-1, 1, size, whole=True)

    def put(self, _room: Held, _axis: int, _start: int, value: Held, _length: int) -> None:
        """Touches the value."""
        self._made(0, 0, (value.base,))

    def done(self, _name: str, _room: Held) -> None:
        """Nothing more."""

    def piece(self, _name: str, _axis: int, value: Held, _held: Span, _needed: Span) -> Held:
        """As it is."""
        return value

    @property
    def peak_bytes(self) -> int:
        """Rooms and the most that is live beside them."""
        last = {base: at for at, bases in enumerate(self._touches) for base in bases}
        live = peak = 0
        for at, size in enumerate(self._sizes):
            over = any(last[base] == at for base in self._reuses[at])
            peak = max(peak, live + (0 if over else size))
            live += size - sum(self._sizes[base] for base in set(self._touches[at]) if last[base] == at)
        return self._rooms + peak

    def _made(self, rows: int, size: int, touches: Sequence[int], reuses: Sequence[int] = ()) -> Held:
        at = len(self._sizes)
        self._sizes.append(size)
        self._touches.append(tuple(base for base in (at, *touches) if base >= 0))
        self._reuses.append(tuple(reuses))
        return Held(at, rows, size, whole=True)


def _named(node: Node, place: int) -> str | None:
    arg = node.args[place] if place < len(node.args) else None
    return arg.name if isinstance(arg, Ref) else None


def _random_values(region: Region, generator: torch.Generator) -> dict[str, Any]:
    """All values that a region takes or gives, its inputs random."""
    graph = region.graph
    env: dict[str, Any] = {}
    with torch.no_grad():
        for node in region.nodes:
            for name in node.refs():
                if name not in env:
                    env[name] = _outside(graph, graph[name], generator)
            env[node.name] = _call(node, node.args, env)
    return env


def _outside(graph: Graph, node: Node, generator: torch.Generator) -> Any:
    if node.kind in HOLDERS:
        return graph.tensors[node.target]
    return pytree.tree_map(
        lambda value: _random(value, generator), node.value, is_leaf=lambda v: isinstance(v, TensorValue)
    )


def _random(value: Any, generator: torch.Generator) -> Any:
    if not isinstance(value, TensorValue):
        return value
    dtype = getattr(torch, value.dtype)
    shape = [int(dim) for dim in value.shape]
    if dtype.is_floating_point or dtype.is_complex:
        made = torch.randn(shape, generator=generator).to(dtype)
    else:
        made = torch.randint(0, 2, shape, generator=generator).to(dtype)
    if not value.strides:
        return made
    return torch.empty_strided(shape, [int(step) for step in value.strides], dtype=dtype).copy_(made)


def _call(node: Node, args: Sequence[Any], env: Mapping[str, Any]) -> Any:
    kwargs = {key: argument(arg, env) for key, arg in node.kwargs}
    return resolve_op(node.op)(*(argument(arg, env) for arg in args), **kwargs)


def _same_bits(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return False
    plain = [tensor.detach().contiguous().view(-1).view(torch.uint8).numpy() for tensor in (mine, theirs)]
    return bool((plain[0] == plain[1]).all())  # numpy: torch compares bytes one by one
