"""torch's graphs to ours: from an exported program, or from a torch.fx graph of aten operations.

What shares memory with what is found by running every operation once on fake tensors and looking at the storages,
since schemas are silent on some (`dropout` in evaluation returns its very argument); what writes, and what draws random
numbers or acts on the world, is in the schemas.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils import _pytree as pytree

from execution.graph.form import OUTPUT, Graph, Signature
from execution.graph.node import (
    GETITEM,
    Arg,
    Atom,
    Dim,
    Effect,
    GraphError,
    Kind,
    Node,
    Record,
    Ref,
    ScalarValue,
    Symbol,
    TensorValue,
    Value,
)

_KINDS: Final[Mapping[InputKind, Kind]] = {
    InputKind.USER_INPUT: "input",
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
}
_DROPPED: Final = frozenset(["aten._assert_tensor_metadata.default"])
"""Assertions on what the graph's values say already."""
_NO_WRITE: Final = frozenset(["aten.detach_.default"])
"""In place by name only."""
_SIDE: Final = ("_assert", "sym_constrain", "print", "record_function", "profiler")


def graph_of_export(
    program: ExportedProgram, name: str, dims: Mapping[tuple[str, int], str] | None = None
) -> Graph:
    """The graph of an exported program; `dims` names symbolic dimensions: {(input, dimension): name}.

    Raises GraphError for what has no place in a graph: custom objects, effect tokens.
    """
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    converter = _Converter(program.graph_module, _symbol_names(program, dims or {}))
    held: dict[str, Any] = {**program.state_dict, **program.constants}
    for placeholder in program.graph.find_nodes(op="placeholder"):
        spec = specs[placeholder.name]
        kind = _KINDS.get(spec.kind)
        if kind is None:
            raise GraphError(
                f"{name}: input {placeholder.name} is {spec.kind.name.lower()}, which is not supported"
            )
        converter.place(placeholder, kind, _target(spec, placeholder))
    converter.run()
    outputs = converter.results()
    written, names, flat = [], [], []
    for out, arg in zip(program.graph_signature.output_specs, outputs, strict=True):
        match out.kind:
            case OutputKind.USER_OUTPUT:
                flat.append(arg)
                names.append(getattr(out.arg, "name", f"output_{len(flat)}"))
            case OutputKind.BUFFER_MUTATION | OutputKind.USER_INPUT_MUTATION | OutputKind.PARAMETER_MUTATION:
                written.append((str(out.target), arg))
            case _:
                raise GraphError(
                    f"{name}: output {out.arg} is {out.kind.name.lower()}, which is not supported"
                )
    converter.write_back(written)
    inputs = tuple(spec.arg.name for spec in specs.values() if spec.kind == InputKind.USER_INPUT)
    called = program.call_spec
    signature = Signature(called.in_spec, called.out_spec, inputs, tuple(names))
    return converter.graph(name, flat, held, signature, tuple(_ranges(program)))


def graph_of_fx(module: fx.GraphModule, args: Sequence[Any], name: str = "") -> Graph:
    """The graph of a torch.fx graph module of aten operations with flat inputs like `args`. Raises GraphError."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    FakeTensorProp(module, mode).propagate(*args)
    converter = _Converter(module, {})
    held: dict[str, Any] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            converter.place(node, "input", str(node.target))
        elif node.op == "get_attr":
            value = _attribute(module, str(node.target))
            held[str(node.target)] = value
            node.meta.setdefault("val", value)
            kind: Kind = "parameter" if isinstance(value, torch.nn.Parameter) else "buffer"
            converter.place(node, kind if isinstance(value, torch.Tensor) else "constant", str(node.target))
    converter.run()
    out = converter.results()
    inputs = tuple(str(node.target) for node in module.graph.find_nodes(op="placeholder"))
    names = tuple(arg.name if isinstance(arg, Ref) else f"output_{index}" for index, arg in enumerate(out))
    raw = next(iter(module.graph.find_nodes(op="output"))).args[0]
    leaves, out_spec = pytree.tree_flatten(raw, is_leaf=lambda item: isinstance(item, fx.Node))
    del leaves
    return converter.graph(
        name or type(module).__name__, out, held, Signature(None, out_spec, inputs, names), ()
    )


@dataclass
class _Converter:
    """Walks a torch.fx graph once."""

    module: fx.GraphModule
    symbols: Mapping[str, str]
    """torch's names of symbols to ours."""
    nodes: dict[str, Node] = field(default_factory=dict)
    _fakes: dict[fx.Node, Any] = field(default_factory=dict)
    _placed: dict[fx.Node, tuple[Kind, str]] = field(default_factory=dict)
    _aside: dict[str, Any] = field(default_factory=dict)
    _dropped: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def place(self, node: fx.Node, kind: Kind, target: str) -> None:
        """What kind of source a placeholder or attribute is."""
        self._placed[node] = (kind, target)

    def run(self) -> None:
        """Convert all but the output."""
        for node in self.module.graph.nodes:
            match node.op:
                case "placeholder" | "get_attr":
                    self._source(node)
                case "call_function":
                    if op_name(node.target) not in _DROPPED:
                        self._call(node)
                case "output":
                    pass
                case _:
                    raise GraphError(
                        f"{node.name}: {node.op} {node.target} is no operation of aten: export the module"
                    )

    def results(self) -> list[Arg]:
        """Flat arguments of the output node."""
        out = next(iter(self.module.graph.find_nodes(op="output")))
        leaves = pytree.tree_leaves(out.args[0], is_leaf=lambda item: isinstance(item, fx.Node))
        return [self._arg(leaf) for leaf in leaves]

    def write_back(self, written: Sequence[tuple[str, Arg]]) -> None:
        """Mutations that a functional export gives as results become copies into what they change."""
        targets = {node.target or node.name: node for node in self.nodes.values() if node.kind != "call"}
        for target, arg in written:
            node = targets[target]
            name = f"write_{node.name}"
            self.nodes[name] = Node(
                name, "call", "aten.copy_.default", (Ref(node.name), arg), value=node.value,
                views=(node.name,), writes=(node.name,),
            )  # fmt: skip

    def graph(
        self,
        name: str,
        outputs: Sequence[Arg],
        held: Mapping[str, Any],
        signature: Signature,
        ranges: Sequence[Symbol],
    ) -> Graph:
        """All of it, checked."""
        used = {dim for node in self.nodes.values() for dim in _symbolic(node.value)}
        ours = [
            Symbol(self.symbols.get(symbol.name, symbol.name), symbol.least, symbol.most, symbol.example)
            for symbol in ranges
        ]
        return Graph(
            name,
            [*self.nodes.values(), Node(OUTPUT, "output", "output", tuple(outputs))],
            tensors={**held, **self._aside},
            symbols=[symbol for symbol in ours if any(symbol.name in text for text in used)],
            signature=signature,
        )

    def _source(self, node: fx.Node) -> None:
        fake = node.meta.get("val")
        self._fakes[node] = fake
        kind, target = self._placed.get(node, ("constant", str(node.target)))
        if node not in self._placed:  # the body of a control-flow operation, or a constant tensor
            self._aside[target] = _attribute(self.module, target)
            fake = self._aside[target] if fake is None else fake
        value = self._value(fake)
        constant = (fake,) if kind == "input" and isinstance(fake, bool | int | float | str | None) else ()
        self.nodes[node.name] = Node(
            node.name, kind, kind, args=constant, value=value, target=target, scope=_scope(node)
        )

    def _call(self, node: fx.Node) -> None:
        args = tuple(self._arg(arg) for arg in node.args)
        kwargs = tuple((key, self._arg(value)) for key, value in node.kwargs.items())
        op = op_name(node.target)
        writes, fake = self._writes(node), self._fake_run(node)
        self._fakes[node] = fake
        views = self._views(node, fake)
        effect = _effect(node.target)
        if effect == "random" and ((views and not writes) or _dropout_is_off(node)):
            effect = ""
        value = self._value(node.meta.get("val", fake))
        self.nodes[node.name] = Node(
            node.name,
            "call",
            op,
            args,
            kwargs,
            value,
            views=views,
            writes=writes,
            effect=effect,
            scope=_scope(node),
        )

    def _fake_run(self, node: fx.Node) -> Any:
        """What the operation gives on fake tensors; what tracing recorded where it cannot be run again."""
        told = node.meta.get("val")
        inputs = [self._fakes[arg] for arg in node.all_input_nodes]
        mode = next(
            (fake.fake_mode for fake in pytree.tree_leaves(inputs) if isinstance(fake, FakeTensor)), None
        )
        if mode is None or isinstance(told, torch.SymInt | torch.SymFloat | torch.SymBool) or _unbacked(told):
            return told
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._fakes.__getitem__)
        try:
            with mode, torch.no_grad():
                return node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception:  # noqa: BLE001 whatever an operation's fake version raises, tracing's record stands in
            return told

    def _views(self, node: fx.Node, fake: Any) -> tuple[str, ...]:
        made = set(_storage_ids(fake))
        if not made:
            return ()
        return tuple(arg.name for arg in node.all_input_nodes if made & set(_storage_ids(self._fakes[arg])))

    def _writes(self, node: fx.Node) -> tuple[str, ...]:
        schema = getattr(node.target, "_schema", None)
        if schema is None or op_name(node.target) in _NO_WRITE:
            return ()
        found: list[str] = []
        for place, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
                found.extend(leaf.name for leaf in pytree.tree_leaves(given) if isinstance(leaf, fx.Node))
        return tuple(dict.fromkeys(found))

    def _arg(self, arg: Any) -> Arg:  # noqa: PLR0911 one line a type
        match arg:
            case fx.Node():
                return Ref(arg.name)
            case None | bool() | int() | float() | complex() | str():
                return arg
            case list() | tuple():
                return tuple(self._arg(item) for item in arg)
            case dict():
                return Record(tuple(str(key) for key in arg), tuple(self._arg(item) for item in arg.values()))
            case slice():
                return Record((), (self._arg(arg.start), self._arg(arg.stop), self._arg(arg.step)))
            case torch.dtype() | torch.layout() | torch.memory_format():
                return Atom(str(arg))
            case torch.device():
                return Atom(f"device:{arg}")
            case torch._ops.OpOverload():
                return Atom(f"op:{op_name(arg)}")
        raise GraphError(f"an argument of type {type(arg).__name__} has no place in a graph: {arg!r}")

    def _value(self, fake: Any) -> Value:
        match fake:
            case torch.Tensor():
                strides = fake.stride() if fake.layout == torch.strided else ()
                return TensorValue(
                    tuple(self._dim(dim) for dim in fake.shape),
                    str(fake.dtype).removeprefix("torch."),
                    tuple(self._dim(dim) for dim in strides),
                )
            case torch.SymInt():
                return ScalarValue("int", self._dim(fake))
            case torch.SymFloat() | torch.SymBool():
                return ScalarValue("float" if isinstance(fake, torch.SymFloat) else "bool")
            case bool() | int() | float():
                return ScalarValue(type(fake).__name__, fake if type(fake) is int else "")
            case list() | tuple():
                return tuple(self._value(item) for item in fake)
        return None

    def _dim(self, dim: int | torch.SymInt) -> Dim:
        if isinstance(dim, int):
            return dim
        expression = dim.node.expr
        if expression.is_number:
            return int(expression)
        free = {symbol: symbol.name for symbol in expression.free_symbols}
        renamed = expression.xreplace(
            {symbol: type(symbol)(self.symbols[text], integer=True, positive=True) for symbol, text in free.items()
             if text in self.symbols}
        )  # fmt: skip
        return str(renamed)


def op_name(target: Callable[..., Any] | str) -> str:
    """`aten.mm.default`, `operator.getitem`, `math.floor`, `higher_order.cond`."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order.{target.__name__}"
    if target is operator.getitem:
        return GETITEM
    module, name = getattr(target, "__module__", ""), getattr(target, "__name__", str(target))
    return f"{str(module).removeprefix('_')}.{name}"


def _effect(target: Any) -> Effect:
    if isinstance(target, torch._ops.OpOverload):
        if torch.Tag.nondeterministic_seeded in target.tags:
            return "random"
        pure_name = target._schema.name.partition("::")[2]
        if pure_name.startswith(_SIDE) or not target._schema.returns:
            return "" if target._schema.is_mutable else "side"
        return "" if target.namespace in ("aten", "prims", "prim") else "side"
    return "side" if isinstance(target, torch._ops.HigherOrderOperator) else ""


def _dropout_is_off(node: fx.Node) -> bool:
    """Whether an operation that could draw (dropout, attention) is called such that it does not."""
    told = {}
    for place, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        default = argument.default_value if argument.has_default_value() else None
        told[argument.name] = (
            node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, default)
        )
    chances = [
        told[name] for name in ("dropout_p", "dropout", "p") if isinstance(told.get(name), int | float)
    ]
    return bool(chances and chances[0] == 0) or told.get("train") is False


def _symbol_names(program: ExportedProgram, dims: Mapping[tuple[str, int], str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in program.graph.find_nodes(op="placeholder"):
        fake = node.meta.get("val")
        for place, dim in enumerate(fake.shape if isinstance(fake, torch.Tensor) else ()):
            name = dims.get((node.name, place))
            if name and isinstance(dim, torch.SymInt) and dim.node.expr.is_symbol:
                found.setdefault(dim.node.expr.name, name)
    return found


def _ranges(program: ExportedProgram) -> Iterator[Symbol]:
    examples: dict[str, int] = {}
    for node in program.graph.nodes:
        for leaf in pytree.tree_leaves(node.meta.get("val")):
            for dim in leaf.shape if isinstance(leaf, torch.Tensor) else (leaf,):
                if isinstance(dim, torch.SymInt) and dim.node.expr.is_symbol and dim.node.hint is not None:
                    examples.setdefault(dim.node.expr.name, int(dim.node.hint))
    for symbol, span in program.range_constraints.items():
        least = int(span.lower) if getattr(span.lower, "is_Integer", False) else 0
        most = int(span.upper) if getattr(span.upper, "is_Integer", False) else None
        yield Symbol(str(symbol), least, most, examples.get(str(symbol), max(least, 1)))


def _target(spec: InputSpec, placeholder: fx.Node) -> str:
    return str(spec.target) if spec.target is not None else placeholder.name


def _symbolic(value: Value) -> Iterator[str]:
    if isinstance(value, TensorValue):
        yield from (dim for dim in value.shape if isinstance(dim, str))
    elif isinstance(value, ScalarValue) and isinstance(value.expression, str):
        yield value.expression
    elif isinstance(value, tuple):
        for item in value:
            yield from _symbolic(item)


def _scope(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return "" if path.startswith("_empty") else path.removeprefix("L['self'].").removeprefix("L__self___")


def _storage_ids(value: Any) -> Iterator[int]:
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
            yield leaf.untyped_storage()._cdata


def _unbacked(value: Any) -> bool:
    """Whether a size in it is known at run time only: running the operation again would invent another."""
    return any(
        isinstance(dim, torch.SymInt) and dim.node.hint is None
        for leaf in pytree.tree_leaves(value)
        if isinstance(leaf, torch.Tensor)
        for dim in leaf.shape
    )


def _attribute(module: torch.nn.Module, target: str) -> Any:
    found: Any = module
    for part in target.split("."):
        found = getattr(found, part)
    return found
