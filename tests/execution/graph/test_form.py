from __future__ import annotations

import networkx as nx
import pytest

from execution.graph.form import Graph
from execution.graph.node import GETITEM, GraphError, Node, Ref, Symbol, TensorValue, is_contiguous, resolve
from tests.execution.graph.builders import call, output, source, value


def aliased() -> Graph:
    """mm, a view of it, a write to it, a read of the view after the write."""
    return Graph(
        "aliased",
        [
            source("w", 8, 4, kind="parameter"),
            source("x", "rows", 8),
            call("mm", "aten.mm.default", "x", "w", shape=("rows", 4)),
            call("view", "aten.view.default", "mm", (-1,), shape=("4*rows",), views=("mm",)),
            call("early", "aten.sum.default", "view", shape=()),
            call("relu_", "aten.relu_.default", "mm", shape=("rows", 4), views=("mm",), writes=("mm",)),
            call("late", "aten.sum.default", "view", shape=()),
            output("early", "late"),
        ],
        tensors={"w": object()},
        symbols=[Symbol("rows", 1, None, 16)],
    )


def test_dag_has_data_and_memory_edges_and_figures() -> None:
    dag = aliased().dag
    assert nx.is_directed_acyclic_graph(dag)
    assert dag.edges["x", "mm"]["kind"] == "data"
    assert dag.edges["early", "relu_"]["kind"] == "memory"  # a read before the write stays before it
    assert dag.edges["relu_", "late"]["kind"] == "memory"
    assert dag.nodes["mm"]["flops"] == 2 * 16 * 8 * 4
    assert dag.nodes["mm"]["shapes"] == (("rows", 4),)
    with pytest.raises(nx.NetworkXError):
        dag.add_node("more")


def test_an_order_may_not_move_a_read_over_a_write() -> None:
    graph = aliased()
    order = list(graph.order)
    a, b = order.index("early"), order.index("relu_")
    order[a], order[b] = order[b], order[a]
    with pytest.raises(GraphError, match="relu_ must come after early \\(memory\\)"):
        graph.with_order(order)
    moved = ["x", "w", *graph.order[2:]]
    assert graph.with_order(moved).order == tuple(moved)
    with pytest.raises(GraphError, match="names every node once"):
        graph.with_order(order[:-1])


def test_every_topological_order_is_taken() -> None:
    graph = aliased()
    orders = list(nx.all_topological_sorts(graph.dag))
    assert len(orders) > 1
    for order in orders:
        assert set(graph.with_order(order).dag.edges) == set(graph.dag.edges)


def test_effects_keep_their_order_and_precede_the_end() -> None:
    nodes = [
        source("x", 4),
        call("a", "aten.bernoulli.default", "x", shape=(4,), effect="random"),
        call("b", "aten.bernoulli.default", "x", shape=(4,), effect="random"),
        output("b"),
    ]
    graph = Graph("g", nodes)
    assert graph.dependencies["b"]["a"] == "effect"
    with pytest.raises(GraphError, match="effect"):
        graph.with_order(["x", "b", "a", "output"])


def test_writes_to_inputs_precede_the_end() -> None:
    write = call("write", "aten.add_.Tensor", "x", 1, shape=(4,), views=("x",), writes=("x",))
    graph = Graph("g", [source("x", 4), source("y", 4), write, output("y")])
    assert graph.dependencies["output"]["write"] == "memory"


def test_items_of_several_results_have_buffers_of_their_own() -> None:
    pair = (value(4), value(4, dtype="int64"))
    nodes = [
        source("x", 4, 3),
        Node("max", "call", "aten.max.dim", (Ref("x"), 1), value=pair),
        Node("best", "call", GETITEM, (Ref("max"), 0), value=pair[0], views=("max",)),
        Node("where", "call", GETITEM, (Ref("max"), 1), value=pair[1], views=("max",)),
        output("best", "where"),
    ]
    graph = Graph("g", nodes)
    assert graph.storages["best"] == ("max#0",)
    assert graph.storages["where"] == ("max#1",)
    assert graph.value_bytes("max") == 4 * 4 + 4 * 8


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([source("x", 1), source("x", 1), output("x")], "two nodes are called 'x'"),
        (
            [call("a", "aten.relu.default", "b", shape=(1,)), output("a")],
            "a takes b, which does not come before",
        ),
        ([source("x", 1)], "the last node must be the output"),
        ([source("w", 1, kind="parameter"), output("w")], "no tensor for w"),
    ],
)
def test_what_is_no_graph_is_refused(nodes: list[Node], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Graph("g", nodes)


def test_graphs_are_immutable_values() -> None:
    graph = aliased()
    with pytest.raises(AttributeError):
        graph.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        graph.tensors["w"] = 1  # type: ignore[index]
    assert graph == graph.replace()
    assert graph != graph.replace(symbols=[Symbol("rows", 1, None, 8)])


def test_symbolic_sizes() -> None:
    assert resolve("2*rows + 1", {"rows": 3}) == 7
    assert resolve("Max(1, rows//2)", {"rows": 1}) == 1
    assert resolve("((rows + 1)//2)", {"rows": 4}) == 2
    with pytest.raises(GraphError, match="__import__"):
        resolve("__import__('os')", {})
    with pytest.raises(GraphError, match="cols"):
        resolve("cols", {"rows": 3})
    assert is_contiguous(TensorValue(("rows", 4, "n"), "float32", ("4*n", "n", 1)))
    assert not is_contiguous(TensorValue(("rows", 4), "float32", (1, "rows")))
    assert is_contiguous(TensorValue((1, 4), "float32", (77, 1)))


def test_costs_follow_the_sizes_asked_for() -> None:
    graph = aliased()
    assert graph.cost("mm", {"rows": 2}).flops == 2 * 2 * 8 * 4
    assert graph.cost("view").bytes == 0
    assert graph.total_cost({"rows": 1}).flops < graph.total_cost().flops
