"""Graphs that show what each pass does, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from execution.graph.convert import graph_of_fx
from execution.graph.form import Graph
from execution.graph.node import GETITEM, Atom, Node, Ref, ScalarValue, Symbol, TensorValue
from tests.execution.graph.builders import call, output, source, value

ROWS = Symbol("rows", 1, 64, 4)
LAST = (-1,)


def weight(name: str, *shape: int) -> Node:
    return source(name, *shape, kind="parameter")


def tensors(*nodes: Node) -> dict[str, torch.Tensor]:
    """Contents of weights, the same every time."""
    made = {}
    for index, node in enumerate(nodes):
        assert isinstance(node.value, TensorValue)
        shape = [int(dim) for dim in node.value.shape]
        made[node.target] = torch.linspace(0.5, 1.5 + index, max(int(torch.tensor(shape).prod()), 1)).view(
            shape
        )
    return made


def graph(name: str, *nodes: Node) -> Graph:
    held = [node for node in nodes if node.kind in ("parameter", "buffer", "constant")]
    symbols = [ROWS] if any("rows" in str(node.value) for node in nodes) else []
    return Graph(name, nodes, tensors=tensors(*held), symbols=symbols)


def cse() -> Graph:
    """Twins of all kinds: equal ones, random ones, reads before and after a write, 1 and 1.0."""
    return graph(
        "cse",
        source("x", "rows", 8),
        call("a", "aten.exp.default", "x", shape=("rows", 8)),
        call("twin", "aten.exp.default", "x", shape=("rows", 8)),
        call("sum", "aten.add.Tensor", "a", "twin", shape=("rows", 8)),
        call("one", "aten.mul.Tensor", "sum", 3, shape=("rows", 8)),
        call("float", "aten.mul.Tensor", "sum", 3.0, shape=("rows", 8)),
        call("r1", "aten.bernoulli.default", "x", shape=("rows", 8), effect="random"),
        call("r2", "aten.bernoulli.default", "x", shape=("rows", 8), effect="random"),
        call("buffer", "aten.neg.default", "x", shape=("rows", 8)),
        call("before", "aten.sum.default", "buffer", shape=()),
        call(
            "write", "aten.add_.Tensor", "buffer", 1, shape=("rows", 8), views=("buffer",), writes=("buffer",)
        ),
        call("after", "aten.sum.default", "buffer", shape=()),
        call("late", "aten.mul.Tensor", "before", "after", shape=()),
        call("all1", "aten.add.Tensor", "one", "float", shape=("rows", 8)),
        call("all2", "aten.add.Tensor", "r1", "r2", shape=("rows", 8)),
        output("all1", "all2", "late"),
    )


def dce() -> Graph:
    """Dead ends, some of which act."""
    return graph(
        "dce",
        weight("w", 8),
        weight("dead_weight", 8),
        source("x", 4, 8),
        source("unused", 2),
        call("dead", "aten.mul.Tensor", "x", "dead_weight", shape=(4, 8)),
        call("deader", "aten.exp.default", "dead", shape=(4, 8)),
        call("random", "aten.bernoulli.default", "x", shape=(4, 8), effect="random"),
        call("write", "aten.mul_.Tensor", "x", 2, shape=(4, 8), views=("x",), writes=("x",)),
        call("y", "aten.add.Tensor", "x", "w", shape=(4, 8)),
        output("y"),
    )


def simplify() -> Graph:
    """No-ops that are exact, and some that only look so."""
    long = Node("long", "input", "input", value=value(4, 8, dtype="int64"), target="long")
    return graph(
        "simplify",
        source("x", 4, 8),
        long,
        call("same", "aten.mul.Tensor", "x", 1.0, shape=(4, 8)),
        call("zero", "aten.add.Tensor", "same", 0, shape=(4, 8)),
        call("minus", "aten.sub.Tensor", "zero", 0, shape=(4, 8)),
        call("view", "aten.view.default", "minus", (4, 8), shape=(4, 8), views=("minus",)),
        Node("t1", "call", "aten.t.default", (Ref("view"),), value=TensorValue((8, 4), "float32", (1, 8)), views=("view",)),
        call("t2", "aten.t.default", "t1", shape=(4, 8), views=("t1",)),
        call("copy", "aten.clone.default", "t2", shape=(4, 8)),
        call("half", "aten.div.Tensor", "copy", 2, shape=(4, 8)),
        call("handed", "aten.clone.default", "half", shape=(4, 8)),
        Node("ints", "call", "aten.add.Tensor", (Ref("long"), 0), value=long.value),
        Node("more", "call", "aten.neg.default", (Ref("ints"),), value=long.value),
        output("half", "handed", "more"),
    )  # fmt: skip


def fold() -> Graph:
    """What depends on weights alone, and what a write takes part in."""
    return graph(
        "fold",
        weight("w", 4),
        source("count", 4, kind="buffer"),
        source("x", "rows", 4),
        call("double", "aten.mul.Tensor", "w", 2, shape=(4,)),
        call("bent", "aten.exp.default", "double", shape=(4,)),
        call("counted", "aten.mul.Tensor", "count", 2, shape=(4,)),
        call("write", "aten.add_.Tensor", "count", 1, shape=(4,), views=("count",), writes=("count",)),
        call("y", "aten.mul.Tensor", "x", "bent", shape=("rows", 4)),
        call("z", "aten.add.Tensor", "y", "counted", shape=("rows", 4)),
        output("z"),
    )


def prepack() -> Graph:
    """A large weight, used twice, and a small one."""
    return graph(
        "prepack",
        weight("w", 32, 64),
        weight("small", 2, 32),
        source("x", "rows", 64),
        call("y", "aten.linear.default", "x", "w", shape=("rows", 32)),
        call("again", "aten.linear.default", "x", "w", shape=("rows", 32)),
        call("both", "aten.add.Tensor", "y", "again", shape=("rows", 32)),
        call("z", "aten.linear.default", "both", "small", shape=("rows", 2)),
        output("z"),
    )


def functionalise() -> Graph:
    """Writes to values of the graph's own, to an input, and to a value that an earlier view is read of later."""
    return graph(
        "functionalise",
        source("x", 4, 8),
        source("y", 4, 8),
        call("a", "aten.exp.default", "x", shape=(4, 8)),
        call("relu_", "aten.relu_.default", "a", shape=(4, 8), views=("a",), writes=("a",)),
        call("mul_", "aten.mul_.Tensor", "relu_", "y", shape=(4, 8), views=("relu_",), writes=("relu_",)),
        call("put", "aten.add_.Tensor", "y", 1, shape=(4, 8), views=("y",), writes=("y",)),
        call("b", "aten.neg.default", "x", shape=(4, 8)),
        call("window", "aten.view.default", "b", (32,), shape=(32,), views=("b",)),
        call("add_", "aten.add_.Tensor", "b", 1, shape=(4, 8), views=("b",), writes=("b",)),
        call("seen", "aten.sum.default", "window", shape=()),
        output("mul_", "seen"),
    )


def patterns() -> Graph:
    """A norm, SwiGLU, a softmax, a gelu and a layer norm, all written out."""
    r8, r1 = ("rows", 8), ("rows", 1)
    return graph(
        "patterns",
        weight("g", 8),
        weight("w", 8),
        weight("b", 8),
        source("x", "rows", 8),
        source("up", "rows", 8),
        call("square", "aten.pow.Tensor_Scalar", "x", 2, shape=r8),
        call("mean", "aten.mean.dim", "square", LAST, True, shape=r1),
        call("safe", "aten.add.Tensor", "mean", 1e-6, shape=r1),
        call("root", "aten.rsqrt.default", "safe", shape=r1),
        call("scaled", "aten.mul.Tensor", "x", "root", shape=r8),
        call("normed", "aten.mul.Tensor", "g", "scaled", shape=r8),
        call("gate", "aten.sigmoid.default", "normed", shape=r8),
        call("silu", "aten.mul.Tensor", "normed", "gate", shape=r8),
        call("swiglu", "aten.mul.Tensor", "up", "silu", shape=r8),
        call("most", "aten.amax.default", "swiglu", LAST, True, shape=r1),
        call("less", "aten.sub.Tensor", "swiglu", "most", shape=r8),
        call("exp", "aten.exp.default", "less", shape=r8),
        call("total", "aten.sum.dim_IntList", "exp", LAST, True, shape=r1),
        call("softmax", "aten.div.Tensor", "exp", "total", shape=r8),
        call("half", "aten.mul.Tensor", "softmax", 0.5, shape=r8),
        call("scale", "aten.mul.Tensor", "softmax", 0.7071067811865476, shape=r8),
        call("erf", "aten.erf.default", "scale", shape=r8),
        call("one", "aten.add.Tensor", "erf", 1, shape=r8),
        call("gelu", "aten.mul.Tensor", "half", "one", shape=r8),
        call("centre", "aten.mean.dim", "gelu", LAST, True, shape=r1),
        call("off", "aten.sub.Tensor", "gelu", "centre", shape=r8),
        call("off2", "aten.mul.Tensor", "off", "off", shape=r8),
        call("var", "aten.mean.dim", "off2", LAST, True, shape=r1),
        call("var_eps", "aten.add.Tensor", "var", 1e-5, shape=r1),
        call("sqrt", "aten.sqrt.default", "var_eps", shape=r1),
        call("unit", "aten.div.Tensor", "off", "sqrt", shape=r8),
        call("times", "aten.mul.Tensor", "unit", "w", shape=r8),
        call("layer", "aten.add.Tensor", "times", "b", shape=r8),
        output("layer"),
    )


def near_patterns() -> Graph:
    """Almost a norm: the mean is used outside too. Almost a softmax: the wrong dimension."""
    r8, r1 = ("rows", 8), ("rows", 1)
    return graph(
        "near_patterns",
        source("x", "rows", 8),
        call("square", "aten.pow.Tensor_Scalar", "x", 2, shape=r8),
        call("mean", "aten.mean.dim", "square", LAST, True, shape=r1),
        call("safe", "aten.add.Tensor", "mean", 1e-6, shape=r1),
        call("root", "aten.rsqrt.default", "safe", shape=r1),
        call("scaled", "aten.mul.Tensor", "x", "root", shape=r8),
        call("exp", "aten.exp.default", "scaled", shape=r8),
        call("total", "aten.sum.dim_IntList", "exp", (0,), True, shape=(1, 8)),
        call("share", "aten.div.Tensor", "exp", "total", shape=r8),
        output("share", "mean"),
    )


def elementwise() -> Graph:
    """A chain with a broadcast, a value that is used twice, and a product between two chains."""
    r8 = ("rows", 8)
    return graph(
        "elementwise",
        weight("b", 8),
        weight("w", 8, 8),
        source("x", "rows", 8),
        call("a", "aten.add.Tensor", "x", "b", shape=r8),
        call("c", "aten.tanh.default", "a", shape=r8),
        call("d", "aten.mul.Tensor", "c", "c", shape=r8),
        call("mm", "aten.mm.default", "d", "w", shape=r8),
        call("e", "aten.sub.Tensor", "mm", "x", shape=r8),
        call("f", "aten.relu.default", "e", shape=r8),
        call("outside", "aten.sum.default", "e", shape=()),
        call("h", "aten.mul.Tensor", "f", "d", shape=r8),
        output("h", "outside"),
    )


def specialise() -> Graph:
    """Sizes in shapes, in arguments and in arithmetic."""
    nodes = (
        source("x", "rows", 8),
        Node("size", "call", "aten.sym_size.int", (Ref("x"), 0), value=ScalarValue("int", "rows")),
        Node("twice", "call", "operator.mul", (Ref("size"), 2), value=ScalarValue("int", "2*rows")),
        call("flat", "aten.view.default", "x", ("twice_", 4), shape=("2*rows", 4), views=("x",)),
        Node("both", "call", "aten.split.Tensor", (Ref("flat"), Ref("size")), value=(value("rows", 4), value("rows", 4)), views=("flat",)),
        Node("first", "call", GETITEM, (Ref("both"), 0), value=value("rows", 4), views=("both",)),
        Node("y", "call", "aten.zeros.default", ((Ref("size"), 4),), (("dtype", Atom("torch.float32")),), value=value("rows", 4)),
        call("z", "aten.add.Tensor", "first", "y", shape=("rows", 4)),
        output("z"),
    )  # fmt: skip
    flat = nodes[3]
    fixed = Node(
        flat.name, flat.kind, flat.op, (Ref("x"), (Ref("twice"), 4)), value=flat.value, views=flat.views
    )
    return graph("specialise", *nodes[:3], fixed, *nodes[4:])


CASES: dict[str, tuple[Callable[[], Graph], str]] = {
    "cse": (cse, "cse"),
    "dce": (dce, "dce"),
    "simplify": (simplify, "simplify"),
    "fold_constants": (fold, "fold_constants"),
    "prepack": (prepack, "prepack"),
    "functionalise": (functionalise, "functionalise"),
    "fuse_patterns": (patterns, "fuse_patterns"),
    "fuse_patterns_near": (near_patterns, "fuse_patterns"),
    "fuse_elementwise": (elementwise, "fuse_elementwise"),
    "specialise": (specialise, "specialise(least=4, most=4)"),
    "specialise_bucket": (specialise, "specialise(least=2, most=16)"),
}
"""Each pass on the graph that shows it: (graph, pipeline); the file is golden/NAME.txt."""


def of_random(module: torch.fx.GraphModule) -> Graph:
    """A random graph for two [4, 6] inputs."""
    x = torch.zeros(4, 6)
    return graph_of_fx(module, (x, x))
