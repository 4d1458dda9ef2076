from __future__ import annotations

import itertools

import pytest
import torch

from execution.graph.convert import graph_of_fx
from execution.graph.form import Graph
from execution.graph.liveness import lifetimes, peak_bytes, spans, steps
from execution.graph.node import GETITEM, Node, Ref
from tests.execution.graph.builders import call, output, random_graph_module, source, value


def fan(order: list[str] | None = None) -> Graph:
    """Two large branches, each reduced to something small."""
    nodes = [
        source("x", 10),
        call("a", "aten.exp.default", "x", shape=(100,)),
        call("b", "aten.exp.default", "x", shape=(100,)),
        call("c", "aten.sum.default", "a", shape=(1,)),
        call("d", "aten.sum.default", "b", shape=(1,)),
        call("e", "aten.add.Tensor", "c", "d", shape=(1,)),
        output("e"),
    ]
    graph = Graph("fan", nodes)
    return graph if order is None else graph.with_order(order)


def test_peak_depends_on_the_order() -> None:
    graph = fan()
    assert peak_bytes(graph) == 4 * (100 + 100 + 1)
    depth_first = ["x", "a", "c", "b", "d", "e", "output"]
    assert peak_bytes(graph, depth_first) == 4 * (100 + 1 + 1)
    assert peak_bytes(fan(depth_first)) == peak_bytes(graph, depth_first)


def test_a_table_tells_what_is_born_and_freed() -> None:
    told = {step.name: step for step in steps(fan())}
    assert (told["c"].born_bytes, told["c"].freed_bytes, told["c"].live_bytes) == (4, 400, 804)
    assert told["output"].live_bytes == 4
    assert (
        sum(step.born_bytes for step in told.values()) == sum(step.freed_bytes for step in told.values()) + 4
    )


def test_a_view_keeps_its_buffer_alive() -> None:
    nodes = [
        source("x", 100),
        call("a", "aten.exp.default", "x", shape=(100,)),
        call("v", "aten.slice.Tensor", "a", 0, 0, 1, shape=(1,), views=("a",)),
        call("b", "aten.exp.default", "x", shape=(100,)),
        call("c", "aten.mul.Tensor", "b", "v", shape=(100,)),
        output("c"),
    ]
    graph = Graph("g", nodes)
    assert {span.buffer: (span.first, span.last) for span in spans(graph)}["a"] == (1, 4)
    assert peak_bytes(graph) == 3 * 400


def test_inputs_and_weights_do_not_count_nor_what_views_them() -> None:
    nodes = [
        source("x", 100),
        call("v", "aten.view.default", "x", (100,), shape=(100,), views=("x",)),
        output("v"),
    ]
    assert peak_bytes(Graph("g", nodes)) == 0


def test_each_of_several_results_dies_by_itself() -> None:
    pair = (value(100), value(50))
    nodes = [
        source("x", 150),
        Node("two", "call", "aten.native_two.default", (Ref("x"),), value=pair),
        Node("first", "call", GETITEM, (Ref("two"), 0), value=pair[0], views=("two",)),
        Node("second", "call", GETITEM, (Ref("two"), 1), value=pair[1], views=("two",)),
        call("s", "aten.sum.default", "first", shape=(1,)),
        call("t", "aten.exp.default", "second", shape=(50,)),
        output("s", "t"),
    ]
    told = {step.name: step for step in steps(Graph("g", nodes))}
    assert told["s"].freed_bytes == 400
    assert told["t"].live_bytes == 4 * (50 + 1 + 50)


def test_a_fused_node_counts_what_its_inside_needs() -> None:
    body = [call("m", "aten.exp.default", "a", shape=(100,)), call("n", "aten.sum.default", "m", shape=(1,))]
    inner = Graph("f", [source("a", 100), *body, output("n")])
    fused = Node("n", "call", "fused.f", (Ref("a"),), value=value(1), inner=inner)
    graph = Graph("g", [source("a", 100), fused, output("n")])
    assert peak_bytes(graph) == 404
    assert lifetimes(graph).scratch == {"n": 400}


@pytest.mark.slow
def test_no_order_is_below_its_widest_node() -> None:
    for seed in range(20):
        x = torch.zeros(4, 6)
        graph = graph_of_fx(random_graph_module(seed, 14), (x, x))
        lives = lifetimes(graph)
        widest = max(sum(lives.bytes[root] for root in lives.uses[name]) for name in graph.order)
        total = sum(lives.bytes.values())
        assert widest <= peak_bytes(graph) <= total


def test_the_table_agrees_with_counting_by_hand() -> None:
    graph = fan()
    lives = lifetimes(graph)
    for order in itertools.permutations(["a", "b", "c", "d"]):
        if order.index("a") > order.index("c") or order.index("b") > order.index("d"):
            continue
        names = ["x", *order, "e", "output"]
        alive = [
            sum(
                lives.bytes[root]
                for root in lives.bytes
                if names.index(root)
                <= place
                <= max(i for i, name in enumerate(names) if root in lives.uses[name])
            )
            for place in range(len(names))
        ]
        assert [step.live_bytes for step in steps(graph, names)] == alive
