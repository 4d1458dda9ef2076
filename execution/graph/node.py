"""What a graph is made of: nodes, their arguments, and the values they give. No torch here: all of it is data.

A node's arguments are nested tuples of scalars, `Ref`s to other nodes and `Atom`s (a dtype, a device, ...). A
dimension is an int, or text where it is symbolic: `rows`, `2*rows`, `((rows + 1)//2)`.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from execution.graph.form import Graph

Dim = int | str
Kind = Literal["input", "parameter", "buffer", "constant", "call", "output"]
Effect = Literal["", "random", "side"]
HOLDERS: Final = ("parameter", "buffer", "constant")
"""Kinds of nodes whose tensor the graph holds (`Graph.tensors[node.target]`)."""
GETITEM: Final = "operator.getitem"

ITEM_BYTES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("bool", "uint8", "int8", "float8_e4m3fn", "float8_e5m2"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32", "complex32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}


class GraphError(ValueError):
    """A graph, a module or a pass is not what it has to be; the message names the node and the way out."""


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of another node."""

    name: str

    def __str__(self) -> str:
        return f"%{self.name}"


@dataclass(frozen=True, slots=True)
class Atom:
    """A constant of torch's own: `torch.float32`, `torch.strided`, `device:cpu`, `slice`."""

    text: str

    def __str__(self) -> str:
        return self.text


Arg = Any
"""None, bool, int, float, complex, str, Ref, Atom, a tuple of Args, or a `Record`."""


@dataclass(frozen=True, slots=True)
class Record:
    """A dict (`names` are its keys) or a slice (no names; start, stop, step) as an argument."""

    names: tuple[str, ...]
    values: tuple[Arg, ...]


@dataclass(frozen=True, slots=True)
class TensorValue:
    """Shape, strides (in elements) and type of a tensor."""

    shape: tuple[Dim, ...]
    dtype: str
    strides: tuple[Dim, ...] = ()

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(str(dim) for dim in self.shape)}]"


@dataclass(frozen=True, slots=True)
class ScalarValue:
    """A number that the graph computes, mostly a size."""

    kind: str
    """`int`, `float` or `bool`."""
    expression: Dim = ""
    """What it is in terms of the symbols; empty: known at run time only."""

    def __str__(self) -> str:
        return f"{self.kind}({self.expression})" if self.expression != "" else self.kind


Value = TensorValue | ScalarValue | None | tuple[Any, ...]
"""Of a node; a tuple for those with several outputs, None for those with none."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A size that varies from call to call."""

    name: str
    least: int
    most: int | None
    """None: unbounded."""
    example: int
    """What costs and live ranges are told for, unless another size is asked for."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation, or something that operations take."""

    name: str
    kind: Kind
    op: str
    """`aten.mm.default`, `operator.getitem`, `fused.rms_norm`; for other kinds the kind itself."""
    args: tuple[Arg, ...] = ()
    kwargs: tuple[tuple[str, Arg], ...] = ()
    value: Value = None
    views: tuple[str, ...] = ()
    """Nodes whose memory this node's value shares, wholly or in part."""
    writes: tuple[str, ...] = ()
    """Nodes whose memory this call writes to."""
    effect: Effect = ""
    """`random`: draws from the generator; `side`: acts beyond its value. Their order is kept, and all of them."""
    target: str = ""
    """Qualified name of a parameter, buffer or constant; name of an input."""
    scope: str = ""
    """Path of the module that it comes from, `layers.0.mlp`."""
    inner: Graph | None = None
    """What a fused node does, as a graph of its own: inputs are its arguments in order."""
    attrs: tuple[tuple[str, int | float | str | bool], ...] = ()
    """What a fused node's family needs to know (`eps`, ...), sorted by name."""

    def refs(self) -> Iterator[str]:
        """Names of the nodes that it takes, each once, in order."""
        seen: dict[str, None] = {}
        for value in (self.args, tuple(value for _, value in self.kwargs)):
            for ref in _refs(value):
                seen.setdefault(ref, None)
        return iter(seen)

    def renamed(self, names: Mapping[str, str]) -> Node:
        """The same, taking other nodes in place of those named; its own name stays."""
        if not names:
            return self

        def swap(arg: Arg) -> Arg:
            return Ref(names.get(arg.name, arg.name)) if isinstance(arg, Ref) else arg

        return replace(
            self,
            args=map_args(self.args, swap),
            kwargs=tuple((key, map_args(value, swap)) for key, value in self.kwargs),
            views=tuple(dict.fromkeys(names.get(name, name) for name in self.views)),
            writes=tuple(dict.fromkeys(names.get(name, name) for name in self.writes)),
        )

    @property
    def pure(self) -> bool:
        """Does nothing but give its value: may be merged, moved and dropped."""
        return self.kind == "call" and not self.effect and not self.writes


def map_args(arg: Arg, swap: Callable[[Arg], Arg]) -> Arg:
    """The same nesting with `swap` applied to each leaf."""
    if isinstance(arg, tuple):
        return tuple(map_args(item, swap) for item in arg)
    if isinstance(arg, Record):
        return Record(arg.names, tuple(map_args(item, swap) for item in arg.values))
    return swap(arg)


def tensors_of(value: Value) -> tuple[TensorValue, ...]:
    """All tensors of a node's value, flat."""
    if isinstance(value, TensorValue):
        return (value,)
    if isinstance(value, tuple):
        return tuple(tensor for item in value for tensor in tensors_of(item))
    return ()


def is_contiguous(tensor: TensorValue) -> bool:
    """Whether its elements lie in memory in order; symbolic sizes are taken to differ from 1."""
    sizes = {name: 1000 + 7 * index for index, name in enumerate(sorted(_names(tensor)))}
    step = 1
    for dim, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=False):
        size = resolve(dim, sizes)
        if size != 1 and resolve(stride, sizes) != step:
            return False
        step *= max(size, 1)
    return len(tensor.strides) == len(tensor.shape)


def contiguous_strides(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Strides of a contiguous tensor; symbolic ones as products."""
    strides: list[Dim] = []
    step: Dim = 1
    for dim in reversed(shape):
        strides.append(step)
        if isinstance(step, int) and isinstance(dim, int):
            step *= max(dim, 1)
        else:
            step = str(dim) if step == 1 else f"({dim})*({step})"
    return tuple(reversed(strides))


def resolve(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The number that a dimension is when symbols have these sizes. Raises GraphError."""
    if isinstance(dim, int):
        return dim
    if dim in sizes:
        return sizes[dim]
    try:
        return int(_evaluate(ast.parse(dim, mode="eval").body, sizes))
    except (SyntaxError, KeyError, TypeError, ZeroDivisionError) as error:
        raise GraphError(f"size {dim!r} cannot be told from {dict(sizes)}: {error!r}") from error


def numel(tensor: TensorValue, sizes: Mapping[str, int]) -> int:
    """Number of elements."""
    return math.prod(resolve(dim, sizes) for dim in tensor.shape)


def nbytes(tensor: TensorValue, sizes: Mapping[str, int]) -> int:
    """Bytes of a dense tensor of this shape."""
    return numel(tensor, sizes) * ITEM_BYTES.get(tensor.dtype, 4)


def _names(tensor: TensorValue) -> set[str]:
    """Symbols in its shape and strides."""
    texts = [dim for dim in (*tensor.shape, *tensor.strides) if isinstance(dim, str)]
    trees = (ast.walk(ast.parse(text, mode="eval")) for text in texts)
    return {tree.id for walk in trees for tree in walk if isinstance(tree, ast.Name)} - set(_FUNCTIONS)


def _refs(arg: Arg) -> Iterator[str]:
    if isinstance(arg, Ref):
        yield arg.name
    elif isinstance(arg, tuple):
        for item in arg:
            yield from _refs(item)
    elif isinstance(arg, Record):
        yield from _refs(arg.values)


_OPERATORS: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "Max": max,
    "Min": min,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "CeilToInt": math.ceil,
    "FloorToInt": math.floor,
    "TruncToInt": math.trunc,
    "ToFloat": float,
    "IntTrueDiv": operator.truediv,
    "FloatTrueDiv": operator.truediv,
    "PowByNatural": operator.pow,
    "floor": math.floor,
    "ceiling": math.ceil,
}


def _evaluate(tree: ast.expr, sizes: Mapping[str, int]) -> Any:
    """Value of an expression as sympy writes it; nothing but arithmetic."""
    match tree:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name):
            return sizes[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, sizes)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, sizes), _evaluate(right, sizes))
        case ast.Call(func=ast.Name(id=name), args=args) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_evaluate(arg, sizes) for arg in args))
    raise SyntaxError(ast.unparse(tree))
