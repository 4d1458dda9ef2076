"""A compute graph: nodes in program order over a networkx DAG. Immutable: passes return new ones.

    graph.order                     names in program order: the schedule as it stands
    graph["mm"]                     one node; graph.nodes: all, in order
    graph.dag                       networkx.DiGraph: every dependency, with costs and sizes as attributes
    graph.with_order(order)         the same graph, another schedule; refuses what is not a topological order
    graph.replace(nodes=...)        another graph; everything is checked again

Any topological order of `dag` is a valid schedule: beside data, its edges keep reads and writes of shared memory
(views, in-place operations) in their order, and so all that draws random numbers or acts on the world. Edges tell why
they are there: kind `data`, `memory` or `effect`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from execution.graph.cost import Cost, cost_of
from execution.graph.node import (
    GETITEM,
    HOLDERS,
    GraphError,
    Node,
    Symbol,
    Value,
    nbytes,
    tensors_of,
)

if TYPE_CHECKING:
    import networkx as nx

OUTPUT: Final = "output"
"""Name of the one output node, always the last."""


@dataclass(frozen=True, slots=True)
class Signature:
    """How a module is called: flat inputs and outputs against nested arguments and results."""

    in_spec: Any = field(default=None, compare=False)
    """torch.utils._pytree.TreeSpec of (args, kwargs); None: the inputs one by one, as tensors."""
    out_spec: Any = field(default=None, compare=False)
    """Of the result; None: a tuple, or the one output itself."""
    input_names: tuple[str, ...] = ()
    """Of forward's arguments, as the module calls them."""
    output_names: tuple[str, ...] = ()
    """Of the flat results. No pass changes them, whatever node gives the result."""


class Graph:
    """A function of tensors: inputs in order, weights held, one output node.

    Raises GraphError when names repeat, a node takes what does not come before it, or the output is not the last.
    """

    def __init__(
        self,
        name: str,
        nodes: Iterable[Node],
        *,
        tensors: Mapping[str, Any] | None = None,
        symbols: Iterable[Symbol] = (),
        signature: Signature | None = None,
    ) -> None:
        self._name = name
        self._nodes: Mapping[str, Node] = MappingProxyType(_by_name(name, nodes))
        self._symbols = tuple(symbols)
        held = tensors or {}
        wanted = {node.target for node in self._nodes.values() if node.kind in HOLDERS}
        if missing := sorted(wanted - set(held)):
            raise GraphError(f"{name}: no tensor for {', '.join(missing[:3])}: pass it in `tensors`")
        self._tensors: Mapping[str, Any] = MappingProxyType(
            {key: value for key, value in held.items() if key in wanted}
        )
        self._signature = signature or Signature(
            input_names=tuple(
                node.target or node.name for node in self._nodes.values() if node.kind == "input"
            ),
            output_names=tuple(_output_names(self._nodes[OUTPUT])),
        )

    @property
    def name(self) -> str:
        """What it computes: a module's class or path."""
        return self._name

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes in program order."""
        return tuple(self._nodes.values())

    @property
    def order(self) -> tuple[str, ...]:
        """Names of all nodes in program order."""
        return tuple(self._nodes)

    @property
    def tensors(self) -> Mapping[str, Any]:
        """Weights and constants by qualified name; shared with the module that they come from."""
        return self._tensors

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Sizes that vary."""
        return self._symbols

    @property
    def signature(self) -> Signature:
        """How the module is called."""
        return self._signature

    @property
    def inputs(self) -> tuple[Node, ...]:
        """Input nodes in the order of the call, wherever the schedule has them."""
        place = {name: index for index, name in enumerate(self._signature.input_names)}
        found = [node for node in self._nodes.values() if node.kind == "input"]
        return tuple(sorted(found, key=lambda node: place.get(node.target or node.name, len(place))))

    @property
    def holders(self) -> tuple[Node, ...]:
        """Parameter, buffer and constant nodes."""
        return tuple(node for node in self._nodes.values() if node.kind in HOLDERS)

    @property
    def calls(self) -> tuple[Node, ...]:
        """Operations in program order."""
        return tuple(node for node in self._nodes.values() if node.kind == "call")

    @property
    def output(self) -> Node:
        """The node whose arguments are the results."""
        return self._nodes[OUTPUT]

    def __getitem__(self, name: str) -> Node:
        try:
            return self._nodes[name]
        except KeyError:
            raise GraphError(f"{self._name}: no node is called {name!r}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._nodes

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)

    def __repr__(self) -> str:
        return f"Graph({self._name!r}, {len(self)} nodes, {len(self.calls)} operations)"

    def __eq__(self, other: object) -> bool:
        """Same nodes in the same order, same symbols, the very same tensors."""
        if not isinstance(other, Graph):
            return NotImplemented
        return (
            self.nodes == other.nodes
            and self._symbols == other._symbols
            and self._signature == other._signature
            and self._tensors.keys() == other._tensors.keys()
            and all(value is other._tensors[key] for key, value in self._tensors.items())
        )

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def users(self) -> Mapping[str, tuple[str, ...]]:
        """Nodes that take each node's value, in program order."""
        found: dict[str, list[str]] = {name: [] for name in self._nodes}
        for node in self._nodes.values():
            for ref in node.refs():
                found[ref].append(node.name)
        return MappingProxyType({name: tuple(users) for name, users in found.items()})

    @cached_property
    def storages(self) -> Mapping[str, tuple[str, ...]]:
        """Buffers in which each node's value lives: its own (`name`, or `name#i` of several), or those it views."""
        found: dict[str, tuple[str, ...]] = {}
        for node in self._nodes.values():
            found[node.name] = _storages(node, found)
        return MappingProxyType(found)

    @cached_property
    def dependencies(self) -> Mapping[str, Mapping[str, str]]:
        """For each node: what must run before it, and why (`data`, `memory` or `effect`)."""
        return MappingProxyType(_dependencies(self.nodes, self.storages))

    @cached_property
    def dag(self) -> nx.DiGraph[str]:
        """Frozen networkx graph: nodes with op, kind, shape, dtype, flops, bytes; edges with their kind."""
        import networkx as nx  # noqa: PLC0415 a command's help needs no graph

        dag: nx.DiGraph[str] = nx.DiGraph(name=self._name)
        for index, node in enumerate(self._nodes.values()):
            cost = self.cost(node.name)
            tensors = tensors_of(node.value)
            dag.add_node(
                node.name,
                index=index,
                kind=node.kind,
                op=node.op,
                shapes=tuple(tensor.shape for tensor in tensors),
                dtypes=tuple(tensor.dtype for tensor in tensors),
                flops=cost.flops,
                bytes_read=cost.bytes_read,
                bytes_written=cost.bytes_written,
                value_bytes=self.value_bytes(node.name),
            )
        for name, before in self.dependencies.items():
            dag.add_edges_from((earlier, name, {"kind": kind}) for earlier, kind in before.items())
        return nx.freeze(dag)  # type: ignore[no-any-return]

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Example size of each symbol."""
        return MappingProxyType({symbol.name: symbol.example for symbol in self._symbols})

    def cost(self, name: str, sizes: Mapping[str, int] | None = None) -> Cost:
        """Work and traffic of one node when symbols have these sizes (default: the examples)."""
        if sizes is not None:
            return cost_of(self[name], self._nodes, {**self.sizes, **sizes})
        return self._costs[name]

    def total_cost(self, sizes: Mapping[str, int] | None = None) -> Cost:
        """Of all nodes together."""
        total = Cost()
        for node in self.calls:
            total += self.cost(node.name, sizes)
        return total

    def value_bytes(self, name: str, sizes: Mapping[str, int] | None = None) -> int:
        """Bytes of a node's tensors, views included."""
        told = self.sizes if sizes is None else {**self.sizes, **sizes}
        return sum(nbytes(tensor, told) for tensor in tensors_of(self[name].value))

    @cached_property
    def _costs(self) -> Mapping[str, Cost]:
        return {name: cost_of(node, self._nodes, self.sizes) for name, node in self._nodes.items()}

    def with_order(self, order: Sequence[str]) -> Graph:
        """The same operations in another order. Raises GraphError if it breaks a dependency."""
        if len(order) != len(self) or set(order) != set(self._nodes):
            odd = sorted(set(order) ^ set(self._nodes))
            raise GraphError(
                f"{self._name}: an order names every node once; check {', '.join(odd[:3]) or 'doubles'}"
            )
        place = {name: index for index, name in enumerate(order)}
        for name, before in self.dependencies.items():
            for earlier, kind in before.items():
                if place[earlier] > place[name]:
                    raise GraphError(f"{self._name}: {name} must come after {earlier} ({kind})")
        return self.replace(nodes=[self._nodes[name] for name in order])

    def replace(
        self,
        *,
        nodes: Iterable[Node] | None = None,
        tensors: Mapping[str, Any] | None = None,
        symbols: Iterable[Symbol] | None = None,
        name: str | None = None,
    ) -> Graph:
        """A graph with some parts exchanged; new tensors are added to those that it has."""
        return Graph(
            self._name if name is None else name,
            self.nodes if nodes is None else nodes,
            tensors={**self._tensors, **(tensors or {})},
            symbols=self._symbols if symbols is None else symbols,
            signature=self._signature,
        )


def _by_name(graph: str, nodes: Iterable[Node]) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for node in nodes:
        if node.name in found:
            raise GraphError(f"{graph}: two nodes are called {node.name!r}")
        for name in (*node.refs(), *node.views, *node.writes):
            if name not in found:
                raise GraphError(f"{graph}: {node.name} takes {name}, which does not come before it")
        found[node.name] = node
    if not found or next(reversed(found)) != OUTPUT or found[OUTPUT].kind != "output":
        raise GraphError(f"{graph}: the last node must be the output, called {OUTPUT!r}")
    return found


def _output_names(output: Node) -> Iterator[str]:
    for index, arg in enumerate(output.args):
        refs = getattr(arg, "name", None)
        yield refs if isinstance(refs, str) else f"output_{index}"


def _storages(node: Node, known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    if node.kind == "output":
        return ()
    if node.op == GETITEM and len(node.args) == 2 and node.views:
        own, index = known[node.args[0].name], node.args[1]
        if own and own[0].startswith(f"{node.args[0].name}#") and isinstance(index, int):
            return (f"{node.args[0].name}#{index}",)
        return own
    if node.views:
        return tuple(dict.fromkeys(root for name in node.views for root in known[name]))
    count = _slots(node.value)
    if isinstance(node.value, tuple):
        return tuple(f"{node.name}#{index}" for index in range(count))
    return (node.name,) if count else ()


def _slots(value: Value) -> int:
    """Outputs of a node, tensors or not: getitem counts them all."""
    return len(value) if isinstance(value, tuple) else int(bool(tensors_of(value)))


def _dependencies(
    nodes: Sequence[Node], storages: Mapping[str, tuple[str, ...]]
) -> dict[str, Mapping[str, str]]:
    written: dict[str, str] = {}
    read: dict[str, list[str]] = {}
    found: dict[str, Mapping[str, str]] = {}
    last_effect = ""
    kept: list[tuple[str, str]] = []  # what must have happened when the graph ends
    external = {root for node in nodes if node.kind in (*HOLDERS, "input") for root in storages[node.name]}
    for node in nodes:
        before = dict.fromkeys(node.refs(), "data")
        roots = {root for name in (*node.refs(), *node.views) for root in storages[name]}
        targets = {root for name in node.writes for root in storages[name]}
        for root in sorted(roots | targets):
            if root in written:
                before.setdefault(written[root], "memory")
        for root in sorted(targets):
            for reader in read.get(root, ()):
                if reader != node.name:
                    before.setdefault(reader, "memory")
            written[root], read[root] = node.name, []
        for root in roots - targets:
            read.setdefault(root, []).append(node.name)
        if targets & external:
            kept.append((node.name, "memory"))
        if node.effect:
            if last_effect:
                before.setdefault(last_effect, "effect")
            last_effect = node.name
        if node.kind == "output":
            for name, kind in (*kept, *(((last_effect, "effect"),) if last_effect else ())):
                before.setdefault(name, kind)
        found[node.name] = MappingProxyType(before)
    return found
