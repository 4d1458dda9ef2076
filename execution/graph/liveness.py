"""Which buffers live when, and the peak memory of an order.

A buffer is born at the node that makes it and dies after the last node that touches it or a view of it; results
live to the end; inputs and weights are the caller's and do not count. That is what torch.fx's generated code does, which
lets go of each name after its last use. Scratch memory inside one operation is not known; of a fused node run by its inner
graph it is, and counts while the node runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from execution.graph.form import Graph
from execution.graph.node import HOLDERS, Node, Value, nbytes, tensors_of


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """What an order's memory depends on, independent of the order."""

    bytes: Mapping[str, int]
    """Of each buffer that the graph itself makes; `name`, or `name#i` of a node with several results."""
    makes: Mapping[str, tuple[str, ...]]
    """Buffers born at each node."""
    uses: Mapping[str, tuple[str, ...]]
    """Buffers that each node touches, its own included."""
    kept: frozenset[str]
    """Buffers that live to the end, since they are results."""
    scratch: Mapping[str, int]
    """Bytes that a node needs while it runs, beyond its results; nodes without are left out."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node of an order."""

    name: str
    live_bytes: int
    """While it runs: arguments, results, scratch, and all that waits."""
    born_bytes: int
    freed_bytes: int
    """After it."""


@dataclass(frozen=True, slots=True)
class Span:
    """One buffer's life in an order."""

    buffer: str
    first: int
    """Place of the node that makes it."""
    last: int
    """Place of the node after which it dies."""
    bytes: int


def lifetimes(graph: Graph, sizes: Mapping[str, int] | None = None) -> Lifetimes:
    """Buffers of a graph when symbols have these sizes (default: the examples)."""
    told = graph.sizes if sizes is None else {**graph.sizes, **sizes}
    external = {
        root for node in graph if node.kind in (*HOLDERS, "input") for root in graph.storages[node.name]
    }
    held: dict[str, int] = {}
    makes: dict[str, tuple[str, ...]] = {}
    uses: dict[str, tuple[str, ...]] = {}
    scratch: dict[str, int] = {}
    for node in graph:
        own = tuple(root for root in graph.storages[node.name] if root not in held and root not in external)
        held |= zip(own, _own_bytes(node, own, told), strict=True)
        makes[node.name] = own
        touched = [root for name in node.refs() for root in graph.storages[name]]
        touched += graph.storages[node.name]
        uses[node.name] = tuple(root for root in dict.fromkeys(touched) if root in held)
        if node.inner is not None:
            inner = peak_bytes(node.inner, sizes=told) - sum(held[root] for root in own)
            if inner > 0:
                scratch[node.name] = inner
    kept = frozenset(uses[graph.output.name])
    return Lifetimes(held, makes, uses, kept, scratch)


def steps(
    graph: Graph, order: Sequence[str] | None = None, sizes: Mapping[str, int] | None = None
) -> tuple[Step, ...]:
    """Memory at each node of an order (default: program order); only calls make or free any."""
    names = graph.order if order is None else order
    lives = lifetimes(graph, sizes)
    last = _last_uses(names, lives)
    found, live = [], 0
    for place, name in enumerate(names):
        born = sum(lives.bytes[root] for root in lives.makes[name])
        live += born
        freed = sum(lives.bytes[root] for root in lives.uses[name] if last[root] == place)
        found.append(Step(name, live + lives.scratch.get(name, 0), born, freed))
        live -= freed
    return tuple(found)


def peak_bytes(
    graph: Graph, order: Sequence[str] | None = None, sizes: Mapping[str, int] | None = None
) -> int:
    """Most bytes that live at once."""
    return max(step.live_bytes for step in steps(graph, order, sizes))


def spans(
    graph: Graph, order: Sequence[str] | None = None, sizes: Mapping[str, int] | None = None
) -> tuple[Span, ...]:
    """Life of each buffer in an order, by birth."""
    names = graph.order if order is None else order
    lives = lifetimes(graph, sizes)
    last = _last_uses(names, lives)
    return tuple(
        Span(root, place, last[root], lives.bytes[root])
        for place, name in enumerate(names)
        for root in lives.makes[name]
    )


def _last_uses(names: Sequence[str], lives: Lifetimes) -> dict[str, int]:
    last = {root: place for place, name in enumerate(names) for root in lives.uses[name]}
    return last | dict.fromkeys(lives.kept, len(names))


def _own_bytes(node: Node, own: Sequence[str], sizes: Mapping[str, int]) -> list[int]:
    if not own:
        return []
    values: tuple[Value, ...] = node.value if isinstance(node.value, tuple) else (node.value,)
    return [sum(nbytes(tensor, sizes) for tensor in tensors_of(value)) for value in values]
