"""A graph of pointwise operators as plain data, read from a subject's exported source.

    chain = read(subject)       # Chain(operands=..., steps=..., results=...); ChainError names what is not pointwise

A step's value at a place depends on its arguments at that place alone, so one loop computes the whole chain without
a tensor in between. Halves and other column ranges of an input (`chunk`, `split`, `slice`) are read where they are.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any

from execution.compiler.port import Subject

MOST_STEPS = 256
Ref = int | float
"""A step or operand by its number (int), or a constant (float)."""
Value = tuple[str, int] | float
"""Of a node: ("operand" or "step", its number), or a constant."""


class ChainError(ValueError):
    """The graph is not a chain of pointwise operators; the message says where."""


class Reach(Enum):
    """How an operand's shape lies in [rows, columns]."""

    ALL = "all"
    COLUMNS = "columns"
    """[columns]: the same for all rows."""
    ROWS = "rows"
    """[rows, 1]: one number a row."""
    ONE = "one"


@dataclass(frozen=True, slots=True)
class Operand:
    """Columns of an argument, from `offset` on."""

    argument: int
    reach: Reach
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One operator; arguments number values: operands first, then steps."""

    op: str
    arguments: tuple[Ref, ...]
    settings: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    """The whole graph."""

    columns: int
    operands: tuple[Operand, ...]
    steps: tuple[Step, ...]
    results: tuple[Ref, ...]
    many: bool
    """The reference gives a tuple."""


_BINARY = {"add": "add", "sub": "sub", "mul": "mul", "div": "div", "maximum": "maximum", "minimum": "minimum"}
_UNARY = {
    name: name
    for name in (
        "neg",
        "relu",
        "sigmoid",
        "silu",
        "tanh",
        "exp",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "abs",
        "erf",
        "square",
    )
}
_SAME = {"clone", "contiguous", "alias", "detach", "lift_fresh_copy", "_to_copy", "to"}
_CHECKS = {"_assert_tensor_metadata", "_assert_scalar", "sym_size", "sym_constrain_range_for_size"}
_POWERS = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal", 3.0: "cube"}


def read(subject: Subject) -> Chain:
    """The chain of the subject's source. Raises ChainError."""
    if not subject.source:
        raise ChainError("there is no source to translate")
    return _read(subject.source, tuple(spec.shape for spec in (*subject.inputs, *subject.params)))


@lru_cache(maxsize=64)
def _read(source: bytes, shapes: tuple[tuple[int, ...], ...]) -> Chain:
    import torch  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.load(io.BytesIO(source))
        except Exception as error:  # whatever an unpickler makes of bytes that are none of its
            raise ChainError(f"the source is no exported program: {error}") from error
        if any(
            str(node.target).partition(".")[2].partition(".")[0].endswith("_") for node in program.graph.nodes
        ):
            program = program.run_decompositions({})  # in-place operators become ordinary ones
    return _Reader(shapes, constants=_constants(program)).read(program.graph)


@dataclass
class _Reader:
    shapes: tuple[tuple[int, ...], ...]
    constants: dict[str, float]
    """Numbers that the graph holds, by the names of their placeholders."""
    columns: int = 0
    operands: list[Operand] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    values: dict[Any, Value] = field(default_factory=dict)
    parts: dict[Any, list[Value]] = field(default_factory=dict)
    """Of nodes that give several tensors."""
    arguments: int = 0

    def read(self, graph: Any) -> Chain:
        self.columns = _columns_of(graph)
        results: list[Any] = []
        for node in graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                results = list(node.args[0])
            else:
                raise ChainError(f"{node.op} {node.name} in a graph that should have no state")
        if len(self.steps) > MOST_STEPS:
            raise ChainError(f"{len(self.steps)} operators, {MOST_STEPS} at most")
        numbers = tuple(self._number(self.values[r]) for r in results if r in self.values)
        if len(numbers) != len(results) or not numbers:
            raise ChainError("a result is not computed by pointwise operators")
        return Chain(self.columns, tuple(self.operands), tuple(self.steps), numbers, many=len(results) > 1)

    def _placeholder(self, node: Any) -> None:
        if node.name in self.constants:
            self.values[node] = self.constants[node.name]
            return
        if self.arguments >= len(self.shapes):
            raise ChainError(f"the source takes more than the subject's {len(self.shapes)} tensors")
        shape = self.shapes[self.arguments]
        reach = self._reach(shape)
        if node.users:
            kind = str(node.meta["val"].dtype).removeprefix("torch.")
            if kind != "float32":
                raise ChainError(f"{node.name} is {kind}: chains are float32")
        self.operands.append(Operand(self.arguments, reach))
        self.values[node] = ("operand", len(self.operands) - 1)
        self.arguments += 1

    def _reach(self, shape: tuple[int, ...]) -> Reach:
        if all(size == 1 for size in shape):
            return Reach.ONE if self.columns > 1 and len(shape) < 2 else Reach.ROWS if shape else Reach.ONE
        if len(shape) == 1:
            return Reach.COLUMNS
        if len(shape) == 2:
            return Reach.ROWS if shape[1] == 1 else Reach.ALL
        raise ChainError(
            f"an argument of shape {shape}: [rows, columns], [columns] and [rows, 1] are possible"
        )

    def _call(self, node: Any) -> None:
        name = _name(node)
        if name in _CHECKS or (
            not hasattr(node.meta.get("val"), "shape")
            and name not in {"chunk", "split", "split_with_sizes", "getitem"}
        ):
            return
        if name in {"chunk", "split", "split_with_sizes"}:
            self._split(node)
        elif name == "getitem":
            self.values[node] = self.parts[node.args[0]][node.args[1]]
        elif name == "slice":
            self._slice(node)
        elif name in _SAME:
            if str(node.meta["val"].dtype) != "torch.float32":
                raise ChainError(f"{name} to {node.meta['val'].dtype}: chains are float32")
            self.values[node] = self._value(node.args[0], node)
        else:
            self._pointwise(node, name)

    def _pointwise(self, node: Any, name: str) -> None:
        args = list(node.args)
        if name in _BINARY:
            a, b = self._argument(args[0], node), self._argument(args[1], node)
            scale = float(node.kwargs.get("alpha", 1))
            if node.kwargs.get("rounding_mode") is not None:
                raise ChainError(f"{node.target} with rounding")
            if scale != 1.0:
                b = self._add(None, "mul", (b, scale))
            self._add(node, _BINARY[name], (a, b))
        elif name == "rsub":
            self._add(node, "sub", (self._argument(args[1], node), self._argument(args[0], node)))
        elif name in _UNARY:
            self._add(node, name, (self._argument(args[0], node),))
        elif name == "gelu":
            kind = node.kwargs.get("approximate", args[1] if len(args) > 1 else "none")
            self._add(node, "gelu" if kind == "none" else "gelu_tanh", (self._argument(args[0], node),))
        elif name == "pow" and isinstance(args[1], int | float) and float(args[1]) in _POWERS:
            self._add(node, _POWERS[float(args[1])], (self._argument(args[0], node),))
        elif name in {"clamp", "clamp_min", "clamp_max", "hardtanh"}:
            self._clamp(node, name, args)
        elif name == "leaky_relu":
            slope = float(args[1]) if len(args) > 1 else 0.01
            self._add(node, "leaky_relu", (self._argument(args[0], node),), (slope,))
        else:
            raise ChainError(f"{node.target} ({node.name}) is not a pointwise operator that templates know")

    def _clamp(self, node: Any, name: str, args: list[Any]) -> None:
        low = args[1] if len(args) > 1 and name != "clamp_max" else node.kwargs.get("min")
        high = args[2] if len(args) > 2 else node.kwargs.get("max")
        if name == "clamp_max":
            high = args[1]
        if name == "hardtanh":
            low, high = (-1.0 if low is None else low), (1.0 if high is None else high)
        value: Ref = self._argument(args[0], node)
        if low is not None:
            value = self._add(None, "maximum", (value, self._argument(low, node)))
        if high is not None:
            value = self._add(None, "minimum", (value, self._argument(high, node)))
        self.values[node] = ("step", int(value) - _STEPS)

    def _add(self, node: Any, op: str, arguments: tuple[Ref, ...], settings: tuple[float, ...] = ()) -> int:
        self.steps.append(Step(op, arguments, settings))
        number = len(self.steps) - 1
        if node is not None:
            self.values[node] = ("step", number)
        return _STEPS + number

    def _split(self, node: Any) -> None:
        operand = self._operand(node.args[0], node)
        if _last_dimension(node, position=2) is False:
            raise ChainError(f"{node.target} ({node.name}) along rows")
        offset, found = 0, []
        for part in node.meta["val"]:
            found.append(self._part(operand, offset))
            offset += int(part.shape[-1])
        self.parts[node] = found

    def _slice(self, node: Any) -> None:
        operand = self._operand(node.args[0], node)
        begin = node.args[2] if len(node.args) > 2 and node.args[2] is not None else 0
        step = node.args[4] if len(node.args) > 4 else 1
        size = int(node.args[0].meta["val"].shape[-1])
        if _last_dimension(node, position=1) is False or step != 1 or not isinstance(begin, int):
            raise ChainError(f"{node.target} ({node.name}): only whole rows can be cut, along columns")
        self.values[node] = self._part(operand, begin % size if begin < 0 else begin)

    def _part(self, operand: Operand, offset: int) -> Value:
        if operand.reach not in {Reach.ALL, Reach.COLUMNS}:
            raise ChainError("columns of an argument that has but one")
        self.operands.append(Operand(operand.argument, operand.reach, operand.offset + offset))
        return ("operand", len(self.operands) - 1)

    def _operand(self, node: Any, user: Any) -> Operand:
        value = self._value(node, user)
        if isinstance(value, float) or value[0] != "operand":
            raise ChainError(f"{user.target} ({user.name}) of what is computed: only arguments can be cut")
        return self.operands[value[1]]

    def _value(self, node: Any, user: Any) -> Value:
        if node not in self.values:
            raise ChainError(f"{user.target} ({user.name}) uses {node}, which is no pointwise value")
        return self.values[node]

    def _argument(self, given: Any, user: Any) -> Ref:
        if isinstance(given, bool | int | float):
            return float(given)
        return self._number(self._value(given, user))

    def _number(self, value: Value) -> Ref:
        if isinstance(value, float):
            return value
        kind, number = value
        return number if kind == "operand" else _STEPS + number


_STEPS = 1_000_000
"""Numbers of steps begin here; those of operands at 0."""


def is_step(ref: Ref) -> bool:
    """Whether a value is computed, not read."""
    return isinstance(ref, int) and ref >= _STEPS


def step_number(ref: Ref) -> int:
    """Which step computes it."""
    return int(ref) - _STEPS


def _constants(program: Any) -> dict[str, float]:
    """Of placeholders that are no arguments: constants that tracing lifted out."""
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            continue
        tensor = program.constants.get(spec.target, program.state_dict.get(spec.target))
        if tensor is None or getattr(tensor, "numel", lambda: 2)() != 1:
            raise ChainError(f"the graph holds {spec.target!r}, which is not one number")
        found[str(spec.arg.name)] = float(tensor)
    return found


def _name(node: Any) -> str:
    """`add` of aten.add.Tensor; `mul` of aten.mul_.Tensor."""
    text = str(node.target)
    if "getitem" in text:
        return "getitem"
    name = text.removeprefix("aten.").partition(".")[0]
    return name.rstrip("_") if not name.startswith("_") else name


def _columns_of(graph: Any) -> int:
    output = next(node for node in graph.nodes if node.op == "output")
    values = [v for v in (getattr(r, "meta", {}).get("val") for r in output.args[0]) if v is not None]
    shapes = {tuple(str(size) for size in value.shape) for value in values}
    if len(values) != len(output.args[0]) or len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ChainError(f"results must all be of one shape [rows, columns], not {sorted(shapes)}")
    columns = values[0].shape[1]
    if not isinstance(columns, int):
        raise ChainError("the number of columns must be a constant")
    return columns


def _last_dimension(node: Any, position: int) -> bool:
    along = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
    source = node.args[0].meta["val"]
    return bool(along in {-1, len(source.shape) - 1})
