from __future__ import annotations

from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from execution.graph.convert import graph_of_fx
from execution.graph.form import Graph
from execution.graph.node import GraphError, Node, Ref
from execution.graph.rebuild import rebuild, resolve_op
from tests.execution.graph.builders import call, output, random_graph_module, source


def inputs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)


def run(module: nn.Module, args: tuple[torch.Tensor, ...]) -> Any:
    """On copies, since random graphs may write to what they are given."""
    return module(*(arg.clone() for arg in args))


def same(first: Any, second: Any) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(first, second, strict=True)
    )


@pytest.mark.slow
@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), size=st.integers(0, 24))
def test_there_and_back_is_bit_exact(seed: int, size: int) -> None:
    module, args = random_graph_module(seed, size), inputs(seed)
    graph = graph_of_fx(module, args)
    again = rebuild(graph)
    assert same(run(again, args), run(module, args))
    assert [node.name for node in again.graph.nodes] == list(graph.order)
    back = graph_of_fx(again, args)
    assert [node.op for node in back] == [node.op for node in graph]
    assert [node.value for node in back] == [node.value for node in graph]


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), size=st.integers(4, 20), shuffle=st.randoms(use_true_random=False))
def test_any_topological_order_gives_the_same_bits(seed: int, size: int, shuffle: Any) -> None:
    module, args = random_graph_module(seed, size), inputs(seed)
    graph = graph_of_fx(module, args)
    rank = {name: shuffle.random() for name in graph.order}
    order = list(nx.lexicographical_topological_sort(graph.dag, key=rank.__getitem__))
    order.remove("output")
    moved = graph.with_order([*order, "output"])
    assert same(run(rebuild(moved), args), run(module, args))


def test_writes_in_the_wrong_order_would_show() -> None:
    """The property above could fail: without memory edges the bits differ."""
    nodes = [
        source("x", 4),
        call("a", "aten.exp.default", "x", shape=(4,)),
        call("b", "aten.sum.default", "a", shape=()),
        call("c", "aten.mul_.Tensor", "a", 2.0, shape=(4,), views=("a",), writes=("a",)),
        output("b", "c"),
    ]
    swapped = [nodes[i] for i in (0, 1, 3, 2, 4)]
    x = torch.ones(4)
    right, wrong = rebuild(Graph("g", nodes))(x)[0], rebuild(Graph("g", swapped))(x)[0]
    assert right * 2 == wrong


def test_a_fused_node_is_a_submodule_that_a_kernel_can_replace() -> None:
    body = [
        call("m", "aten.mul.Tensor", "a", "b", shape=(4,)),
        call("n", "aten.exp.default", "m", shape=(4,)),
    ]
    inner = Graph("elementwise", [source("a", 4), source("b", 4), *body, output("n")])
    fused = Node("n", "call", "fused.elementwise", (Ref("a"), Ref("b")), value=body[1].value, inner=inner)
    graph = Graph("g", [source("a", 4), source("b", 4), fused, output("n")])
    a, b = torch.rand(4), torch.rand(4)
    assert torch.equal(rebuild(graph)(a, b), torch.exp(a * b))

    class Kernel(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a - b

    assert torch.equal(rebuild(graph, {"n": Kernel()})(a, b), a - b)


def test_weights_are_shared_not_copied() -> None:
    weight = nn.Parameter(torch.rand(3))
    nodes = [
        source("x", 3),
        Node("w", "parameter", "parameter", value=source("w", 3).value, target="deep.er.weight"),
        call("y", "aten.add.Tensor", "x", "w", shape=(3,)),
        output("y"),
    ]
    module = rebuild(Graph("g", nodes, tensors={"deep.er.weight": weight}))
    assert module.get_parameter("deep.er.weight") is weight


def test_an_operation_that_torch_lacks_is_named() -> None:
    with pytest.raises(GraphError, match=r"aten\.no_such\.default is not known to torch"):
        resolve_op("aten.no_such.default")
    assert resolve_op("aten.mm.default") is torch.ops.aten.mm.default
