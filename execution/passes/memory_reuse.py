"""Memory reuse: a value takes the place of an argument that dies with it, and parts are written where they end up.

    Reuse()(graph)        # searches the order anew, since what dies where depends on it

Two rewrites, both bit-exact: the arithmetic is the same, only its results are put elsewhere.

*In place*: an elementwise operation that is the last to touch an argument of its own shape writes over it. *Staging*:
the result of `cat` or `stack` is allocated at its first part; each part is copied in when it is there, and dies. Staging
helps some graphs and harms others: it is tried with and without, and the lower peak is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from execution.graph.form import Graph
from execution.graph.node import Atom, GraphError, Node, Ref, TensorValue
from execution.passes.base import register
from execution.passes.editor import Editor
from execution.passes.memory_order import order_problem
from execution.passes.order_exact import SearchBudget, Solution, minimal_order
from execution.passes.order_problem import OrderProblem

IN_PLACE: Final[Mapping[str, tuple[str, tuple[int, ...]]]] = {
    "aten.relu.default": ("aten.relu_.default", (0,)),
    "aten.gelu.default": ("aten.gelu_.default", (0,)),
    "aten.silu.default": ("aten.silu_.default", (0,)),
    "aten.tanh.default": ("aten.tanh_.default", (0,)),
    "aten.sigmoid.default": ("aten.sigmoid_.default", (0,)),
    "aten.hardswish.default": ("aten.hardswish_.default", (0,)),
    "aten.leaky_relu.default": ("aten.leaky_relu_.default", (0,)),
    "aten.exp.default": ("aten.exp_.default", (0,)),
    "aten.neg.default": ("aten.neg_.default", (0,)),
    "aten.clamp.default": ("aten.clamp_.default", (0,)),
    "aten.add.Tensor": ("aten.add_.Tensor", (0, 1)),
    "aten.mul.Tensor": ("aten.mul_.Tensor", (0, 1)),
    "aten.sub.Tensor": ("aten.sub_.Tensor", (0,)),
    "aten.div.Tensor": ("aten.div_.Tensor", (0,)),
    "aten.batch_norm.default": ("execution.passes.kernels.batch_norm_", (0,)),
}
"""Operations that have a form in place, and the arguments over which they can write: sums and products commute."""


@register("memory_reuse")
@dataclass(frozen=True, slots=True)
class Reuse:
    """Pass: order, in-place writes and staging, for the lowest peak memory."""

    beam: int = 16
    states: int = 3_000
    staging: bool = True

    def __call__(self, graph: Graph) -> Graph:
        """The graph of the lowest peak; the very same graph when nothing lowers it."""
        return self.plan(graph)[0]

    def plan(self, graph: Graph) -> tuple[Graph, Solution]:
        """The graph and the figures of its order, against the order that was given."""
        tried = [graph]
        if self.staging and not graph.symbols:
            tried.append(staged(graph))
        best: tuple[Graph, Solution] | None = None
        for candidate in dict.fromkeys(map(_Same, tried)):
            problem = with_reuse(candidate.graph, order_problem(candidate.graph))
            solution = minimal_order(problem, SearchBudget(self.beam, self.states))
            if best is None or solution.peak_bytes < best[1].peak_bytes:
                best = candidate.graph, solution
        assert best is not None  # noqa: S101 the graph itself was tried
        return in_order(*best), best[1]


class _Same:
    """A graph compared by identity."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __hash__(self) -> int:
        return id(self.graph)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.graph is self.graph


def with_reuse(graph: Graph, problem: OrderProblem) -> OrderProblem:
    """The problem with what each operation may write over."""
    index = {node.name: i for i, node in enumerate(graph.calls)}
    reuses = []
    for i, node in enumerate(graph.calls):
        names = [arg.name for arg in _candidates(graph, node)]
        reuses.append(tuple(index[name] for name in names if index[name] in problem.touches[i]))
    return replace(problem, reuses=tuple(reuses))


def in_order(graph: Graph, solution: Solution) -> Graph:
    """The graph in the solution's order, with operations in place where that order lets them be."""
    problem = with_reuse(graph, order_problem(graph))
    calls = graph.calls
    changed: dict[str, Node] = {}
    done = 0
    for i in solution.order:
        done |= 1 << i
        over = problem.taken_over(i, done)
        changed[calls[i].name] = calls[i] if over is None else _in_place(calls[i], calls[over].name)
    rest = [node for node in graph.nodes if node.kind not in {"call", "output"}]
    return graph.replace(nodes=[*rest, *changed.values(), graph.output])


def staged(graph: Graph) -> Graph:
    """Every `cat` and `stack` of fresh values written part by part; the same graph where there is none."""
    wanted = {node.name for node in graph.calls if node.op in _JOINS and _stageable(graph, node)}
    if not wanted:
        return graph
    editor = Editor(graph)
    for node in graph:
        if node.name in wanted:
            editor.stand_in(node.name, _stage(editor, node))
        else:
            editor.copy(node)
    return editor.finish()


_JOINS: Final = ("aten.cat.default", "aten.stack.default")


def _candidates(graph: Graph, node: Node) -> list[Ref]:
    """Arguments whose memory could be the node's own: of its shape, fresh, and no views of anything."""
    known = IN_PLACE.get(node.op)
    if known is None or not isinstance(node.value, TensorValue) or not node.pure or node.views:
        return []
    if node.op == "aten.batch_norm.default" and node.args[5] is not False:
        return []
    found = []
    for place in known[1]:
        arg = node.args[place] if place < len(node.args) else None
        if not isinstance(arg, Ref):
            continue
        if place and dict(node.kwargs).get("alpha", 1) != 1:
            continue
        source = graph[arg.name]
        if source.kind == "call" and source.value == node.value and graph.storages[arg.name] == (arg.name,):
            found.append(arg)
    return found


def _in_place(node: Node, over: str) -> Node:
    op, places = IN_PLACE[node.op]
    args = node.args
    if len(places) == 2 and args[0] != Ref(over):
        args = (args[1], args[0], *args[2:])
    return replace(node, op=op, args=args, views=(over,), writes=(over,))


def _stageable(graph: Graph, node: Node) -> bool:
    parts = node.args[0]
    value = node.value
    if not isinstance(value, TensorValue) or not isinstance(parts, tuple) or len(parts) < 2:
        return False
    return all(
        isinstance(part, Ref)
        and graph[part.name].kind == "call"
        and getattr(graph[part.name].value, "dtype", "") == value.dtype
        and len(graph[part.name].value.shape) > 0  # type: ignore[union-attr]
        for part in parts
    )


def _stage(editor: Editor, node: Node) -> Ref:
    value = node.value
    if not isinstance(value, TensorValue):
        raise GraphError(f"{node.name}: {node.op} gives no tensor")
    dim = int(node.args[1]) if len(node.args) > 1 else 0
    dim %= len(value.shape)
    dtype = (("dtype", Atom(f"torch.{value.dtype}")), ("device", Atom("device:cpu")))
    room = editor.call(
        "aten.empty_strided.default", value.shape, value.strides, hint=f"{node.name}_room", kwargs=dtype
    )
    at = 0
    for part in node.args[0]:
        if node.op == "aten.stack.default":
            place = editor.call("aten.select.int", room, dim, at)
            size = 1
        else:
            size = editor.shape(part)[dim]
            place = editor.call("aten.slice.Tensor", room, dim, at, at + size)
        editor.write("aten.copy_.default", place, part)
        at += size
    # All parts are in: this view comes after every write, by the graph's memory dependencies.
    return editor.call("aten.alias.default", room, hint=f"{node.name}_all")
