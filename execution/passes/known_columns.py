"""What is absent, pruned: some columns of a boolean input are known, and so is all that follows from them.

    KnownColumns(input="present", columns="1?0")(graph)     # '1': true in every row, '0': false, '?': not known

Values are followed through the graph element by element where they are known: a mask that is false makes a product
zero, a sum with zeros is its other side, an attention mask that is true everywhere is none. What is no longer taken is
dropped. As masks do, it supposes that what is masked is finite. The caller must see to it that the columns are as told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from execution.graph.form import Graph
from execution.graph.node import GETITEM, Arg, Atom, GraphError, Node, Ref, TensorValue
from execution.graph.rebuild import resolve_op
from execution.passes.base import register
from execution.passes.calm import Calm
from execution.passes.dce import DeadCode
from execution.passes.editor import Editor, atom
from execution.passes.memory import written_roots


@dataclass(frozen=True, slots=True)
class Known:
    """A tensor of which some elements are known."""

    value: Tensor
    """Elsewhere than where `known`: anything."""
    known: Tensor

    def all_are(self, number: float) -> bool:
        """Whether every element is known to be this."""
        return bool(self.known.all()) and bool((self.value == number).all())


@register("known_columns", exact=False, tolerance="equal, but for -0.0 and for what is masked and not finite")
@dataclass(frozen=True, slots=True)
class KnownColumns:
    """Pass: prune by what is known of one boolean input (rows, columns)."""

    input: str = "present"
    columns: str = ""

    def __call__(self, graph: Graph) -> Graph:
        """The pruned graph. Raises GraphError when the input is not there or has another shape."""
        if not set(self.columns) - {"?"}:
            return graph
        graph = Calm()(graph)
        node = next((node for node in graph.inputs if self.input in {node.name, node.target}), None)
        if node is None or not isinstance(node.value, TensorValue) or len(node.value.shape) != 2:
            raise GraphError(f"{graph.name}: known_columns: no input {self.input!r} of two dimensions")
        rows, columns = (int(dim) for dim in node.value.shape)
        if len(self.columns) != columns or set(self.columns) - set("01?"):
            raise GraphError(
                f"{graph.name}: known_columns: {columns} columns, told {self.columns!r} (of 0, 1, ?)"
            )
        value = torch.tensor([[c == "1" for c in self.columns]]).expand(rows, -1)
        known = torch.tensor([[c != "?" for c in self.columns]]).expand(rows, -1)
        return DeadCode()(_Pruner(graph, {node.name: Known(value, known)}).run())


class _Pruner:
    def __init__(self, graph: Graph, facts: dict[str, Known]) -> None:
        self.graph, self.facts, self.editor = graph, facts, Editor(graph)
        self.parts: dict[str, Sequence[Known]] = {}
        self.written = written_roots(graph)

    def run(self) -> Graph:
        for node in self.graph:
            if node.pure and node.inner is None and not self._written(node):
                self._follow(node)
                if self._simpler(node):
                    continue
            self.editor.copy(node)
        return self.editor.finish()

    def _written(self, node: Node) -> bool:
        return not self.written.isdisjoint(self.graph.storages[node.name])

    def _follow(self, node: Node) -> None:
        if node.op == GETITEM and node.args[0].name in self.parts:
            self.facts[node.name] = self.parts[node.args[0].name][node.args[1]]
            return
        if not any(name in self.facts for name in node.refs()):
            return
        rule = _RULES.get(node.op)
        if rule is None:
            return
        made = rule(node, [self._fact(arg) for arg in node.args])
        if isinstance(made, list):
            self.parts[node.name] = made
        elif made is not None and bool(made.known.any()):
            self.facts[node.name] = made

    def _fact(self, arg: Arg) -> Any:
        """A `Known` for a tensor (nothing known: all of it unknown), other arguments as they are."""
        if isinstance(arg, Ref):
            value = self.graph[arg.name].value
            if arg.name in self.facts or not isinstance(value, TensorValue):
                return self.facts.get(arg.name)
            shape = [int(dim) for dim in value.shape]
            nothing = torch.zeros((), dtype=torch.bool).expand(shape)
            return Known(torch.zeros((), dtype=getattr(torch, value.dtype)).expand(shape), nothing)
        if isinstance(arg, tuple):
            return [self._fact(item) for item in arg]
        return arg

    def _simpler(self, node: Node) -> bool:
        fact = self.facts.get(node.name)
        if fact is not None and bool(fact.known.all()):
            self.editor.stand_in(node.name, self._constant(node.name, fact.value))
            return True
        other = self._other_side(node)
        if other is not None and _alike(self.graph[other.name], node):
            self.editor.stand_in(node.name, self.editor.now(other))
            return True
        if node.op == _ATTENTION and len(node.args) > 3 and isinstance(node.args[3], Ref):
            mask = self.facts.get(node.args[3].name)
            if mask is not None and mask.value.dtype == torch.bool and mask.all_are(1):
                args = (*node.args[:3], None, *node.args[4:])
                self.editor.stand_in(node.name, self.editor.call(node.op, *args, kwargs=node.kwargs))
                return True
        return False

    def _other_side(self, node: Node) -> Ref | None:
        """The argument that the operation gives back unchanged, since the other is its neutral element."""
        neutral = _NEUTRAL.get(node.op)
        if neutral is None or len(node.args) < 2:
            return None
        for place in (1, 0) if node.op in _COMMUTES else (1,):
            side, other = node.args[place], node.args[1 - place]
            fact = self.facts.get(side.name) if isinstance(side, Ref) else None
            if fact is not None and isinstance(other, Ref) and fact.all_are(neutral):
                return other
        return None

    def _constant(self, name: str, value: Tensor) -> Ref:
        first = value.reshape(-1)[:1]
        if value.numel() and bool((value == first).all()):
            held = self.editor.hold(f"{name}_known", first.reshape((1,) * value.dim()).clone())
            return self.editor.call("aten.expand.default", held, tuple(value.shape))
        return self.editor.hold(f"{name}_known", value.contiguous())


def _alike(one: Node, other: Node) -> bool:
    a, b = one.value, other.value
    return (
        isinstance(a, TensorValue) and isinstance(b, TensorValue) and (a.shape, a.dtype) == (b.shape, b.dtype)
    )


Rule = Callable[[Node, list[Any]], "Known | list[Known] | None"]


def _run(node: Node, args: Sequence[Any]) -> Tensor:
    with torch.no_grad():
        made: Tensor = resolve_op(node.op)(*(atom(arg) if isinstance(arg, Atom) else arg for arg in args))
    return made


def _moves(node: Node, args: list[Any]) -> Known | list[Known] | None:
    """Views: elements move, and what is known of them with them."""
    x, *rest = args
    if not isinstance(x, Known):
        return None
    op = "aten.reshape.default" if node.op == "aten.view.default" else node.op
    with torch.no_grad():
        value, known = resolve_op(op)(x.value, *rest), resolve_op(op)(x.known, *rest)
    if isinstance(value, Tensor):
        return Known(value, known)
    return [Known(v, k) for v, k in zip(value, known, strict=True)]


def _elementwise(node: Node, args: list[Any]) -> Known | None:
    value = _run(node, [arg.value if isinstance(arg, Known) else arg for arg in args])
    known = torch.ones((), dtype=torch.bool)
    for arg in args:
        if isinstance(arg, Known):
            known = known & arg.known
    return Known(value, known.expand(value.shape))


def _absorbing(number: float) -> Rule:
    """An element that decides the result whatever the other is: 0 of a product, false of `and`, true of `or`."""

    def rule(node: Node, args: list[Any]) -> Known | None:
        made = _elementwise(node, args)
        if made is None:
            return None
        decided = torch.zeros((), dtype=torch.bool)
        for arg in args[:2]:
            if isinstance(arg, Known):
                decided = decided | (arg.known & (arg.value == number))
        decided = decided.expand(made.value.shape)
        value = torch.where(decided, torch.full_like(made.value, number), made.value)
        return Known(value, made.known | decided)

    return rule


def _reduced(node: Node, args: list[Any]) -> Known | None:
    x, dims, keep = args[0], args[1] if len(args) > 1 else None, bool(args[2]) if len(args) > 2 else False
    if not isinstance(x, Known) or dims is None:
        return None
    known = x.known.all(dims, keep) if isinstance(dims, int) else _all_over(x.known, dims, keep=keep)
    value = _run(node, [torch.where(x.known, x.value, torch.zeros_like(x.value)), *args[1:]])
    if node.op == "aten.any.dim":  # one known true is enough
        known = known | (x.known & x.value.bool()).any(dims, keep)
    return Known(value, known)


def _all_over(known: Tensor, dims: Sequence[int], *, keep: bool) -> Tensor:
    for dim in sorted((dim % known.dim() for dim in dims), reverse=True):
        known = known.all(dim, keep)
    return known


def _joined(node: Node, args: list[Any]) -> Known | None:
    parts, *rest = args
    if not all(isinstance(part, Known) for part in parts):
        return None
    value = _run(node, [[part.value for part in parts], *rest])
    return Known(value, _run(node, [[part.known for part in parts], *rest]))


_ATTENTION: Final = "aten.scaled_dot_product_attention.default"
_VIEWS: Final = (
    "aten.view.default", "aten.reshape.default", "aten.expand.default", "aten.unsqueeze.default",
    "aten.squeeze.dim", "aten.slice.Tensor", "aten.select.int", "aten.permute.default", "aten.transpose.int",
    "aten.alias.default", "aten.clone.default", "aten.unbind.int", "aten.split.Tensor",
)  # fmt: skip
_PLAIN: Final = (
    "aten.add.Tensor", "aten.sub.Tensor", "aten.div.Tensor", "aten.bitwise_not.default", "aten.clamp.default",
    "aten.logical_not.default", "aten.to.dtype", "aten.ne.Scalar", "aten.eq.Scalar", "aten.clamp_min.default",
)  # fmt: skip
_RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_VIEWS, _moves),
    **dict.fromkeys(_PLAIN, _elementwise),
    **dict.fromkeys(("aten.mul.Tensor", "aten.bitwise_and.Tensor", "aten.__and__.Tensor"), _absorbing(0)),
    **dict.fromkeys(("aten.bitwise_or.Tensor", "aten.__or__.Tensor"), _absorbing(1)),
    **dict.fromkeys(("aten.sum.dim_IntList", "aten.mean.dim", "aten.any.dim"), _reduced),
    **dict.fromkeys(("aten.cat.default", "aten.stack.default"), _joined),
}
_NEUTRAL: Final = {
    "aten.add.Tensor": 0, "aten.sub.Tensor": 0, "aten.mul.Tensor": 1, "aten.div.Tensor": 1,
    "aten.bitwise_and.Tensor": 1, "aten.bitwise_or.Tensor": 0, "aten.__and__.Tensor": 1, "aten.__or__.Tensor": 0,
}  # fmt: skip
_COMMUTES: Final = frozenset(_NEUTRAL) - {"aten.sub.Tensor", "aten.div.Tensor"}
