"""Terms that match expressions written out of primitive operations, whichever way round they were written.

    root = call("rsqrt", call("add", mean, num("eps"), swap=True))
    found = match(graph, "mul_1", call("mul", var("x"), root, swap=True))
    found.vars["x"], found.numbers["eps"], found.members

`swap` tries a binary operation both ways; `either` tries several terms; a variable that occurs twice must be the same
node both times. Casts to a type that the value has already are looked through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from execution.graph.cost import base_name
from execution.graph.form import Graph
from execution.graph.node import Arg, Node, Ref, TensorValue

CASTS = frozenset({"to", "_to_copy", "type_as"})


@dataclass(frozen=True, slots=True)
class Var:
    """Any tensor; the same one wherever the name occurs."""

    name: str


@dataclass(frozen=True, slots=True)
class Num:
    """A number: of this value (to 1e-4), or any, under a name."""

    name: str = ""
    value: float | None = None


@dataclass(frozen=True, slots=True)
class LastDim:
    """The last dimension alone, as reductions take it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One operation; trailing arguments that are not named here may be anything but tensors."""

    op: str
    args: tuple[Term, ...]
    swap: bool = False
    cast: bool = True
    """Whether its result may pass through a cast before it is used."""


@dataclass(frozen=True, slots=True)
class Either:
    """The first of several terms that fits."""

    terms: tuple[Term, ...]


Term = Var | Num | LastDim | Call | Either


@dataclass(frozen=True, slots=True)
class Found:
    """What a term matched."""

    vars: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    members: tuple[str, ...] = ()


def call(op: str, *args: Term, swap: bool = False) -> Call:
    """An operation by its base name."""
    return Call(op, args, swap)


def match(graph: Graph, name: str, term: Term) -> Found | None:
    """The first way in which a node and what it takes fit a term."""
    return next(_match(graph, Ref(name), term, Found()), None)


def _match(graph: Graph, arg: Arg, term: Term, found: Found) -> Iterator[Found]:
    match term:
        case Var(name):
            if isinstance(arg, Ref) and found.vars.get(name, arg.name) == arg.name:
                yield Found({**found.vars, name: arg.name}, found.numbers, found.members)
        case Num(name, value):
            number = _number(graph, arg)
            if number is not None and (value is None or abs(number - value) <= 1e-4 * max(abs(value), 1e-9)):
                yield Found(
                    found.vars, {**found.numbers, name: number} if name else found.numbers, found.members
                )
        case LastDim():
            if arg in (-1, (-1,)):
                yield found
        case Either(terms):
            for each in terms:
                yield from _match(graph, arg, each, found)
        case Call() if isinstance(arg, Ref):
            yield from _match_call(graph, graph[arg.name], term, found)


def _match_call(graph: Graph, node: Node, term: Call, found: Found) -> Iterator[Found]:
    if term.cast and base_name(node.op) in CASTS and node.pure and isinstance(node.args[0], Ref):
        inner = Found(found.vars, found.numbers, (*found.members, node.name))
        yield from _match_call(graph, graph[node.args[0].name], term, inner)
    if base_name(node.op) != term.op or not node.pure or len(node.args) < len(term.args):
        return
    if any(isinstance(arg, Ref) for arg in node.args[len(term.args) :]) or _odd(node):
        return
    here = Found(found.vars, found.numbers, (*found.members, node.name))
    orders = [term.args, (term.args[1], term.args[0])] if term.swap else [term.args]
    for terms in orders:
        yield from _match_all(graph, node.args, terms, here)


def _match_all(graph: Graph, args: tuple[Arg, ...], terms: tuple[Term, ...], found: Found) -> Iterator[Found]:
    if not terms:
        yield found
        return
    for each in _match(graph, args[0], terms[0], found):
        yield from _match_all(graph, args[1:], terms[1:], each)


def _odd(node: Node) -> bool:
    """Whether keyword arguments make it another operation (`alpha=2`, a rounding mode)."""
    return any(key in ("alpha", "rounding_mode") and value not in (1, None) for key, value in node.kwargs)


def _number(graph: Graph, arg: Arg) -> float | None:
    """A plain number, or a constant tensor of one element."""
    if isinstance(arg, int | float) and not isinstance(arg, bool):
        return float(arg)
    if isinstance(arg, Ref):
        node = graph[arg.name]
        single = isinstance(node.value, TensorValue) and node.value.shape in ((), (1,))
        if single and node.kind in ("buffer", "constant"):
            return float(graph.tensors[node.target])
    return None
