from __future__ import annotations

import pytest

from execution.graph.cost import Cost, Peaks, base_name, roofline_s
from execution.graph.form import Graph
from execution.graph.node import Node, Ref, TensorValue
from tests.execution.graph.builders import call, output, source


def cost(node: Node, *sources: Node) -> Cost:
    return Graph("g", [*sources, node, output(node.name)]).cost(node.name)


F32 = 4


@pytest.mark.parametrize(
    ("node", "sources", "expected"),
    [
        (
            call("n", "aten.mm.default", "a", "b", shape=(3, 5)),
            [source("a", 3, 4), source("b", 4, 5)],
            Cost(2 * 3 * 4 * 5, F32 * (12 + 20), F32 * 15),
        ),
        (
            call("n", "aten.addmm.default", "c", "a", "b", shape=(3, 5)),
            [source("c", 5), source("a", 3, 4), source("b", 4, 5)],
            Cost(15 * 9, F32 * (5 + 12 + 20), F32 * 15),
        ),
        (
            call("n", "aten.linear.default", "a", "b", "c", shape=(2, 3, 5)),
            [source("a", 2, 3, 4), source("b", 5, 4), source("c", 5)],
            Cost(30 * 9, F32 * (24 + 20 + 5), F32 * 30),
        ),
        (
            call("n", "aten.bmm.default", "a", "b", shape=(2, 3, 5)),
            [source("a", 2, 3, 4), source("b", 2, 4, 5)],
            Cost(30 * 8, F32 * (24 + 40), F32 * 30),
        ),
        (
            call("n", "aten.scaled_dot_product_attention.default", "q", "k", "v", shape=(1, 2, 3, 8)),
            [source("q", 1, 2, 3, 8), source("k", 1, 2, 5, 8), source("v", 1, 2, 5, 8)],
            Cost(2 * 3 * 5 * (16 + 16 + 14), F32 * (48 + 80 + 80), F32 * 48),
        ),
        (
            call("n", "aten.conv2d.default", "x", "w", shape=(1, 8, 6, 6)),
            [source("x", 1, 4, 8, 8), source("w", 8, 4, 3, 3)],
            Cost(2 * 8 * 36 * 36, F32 * (256 + 288), F32 * 288),
        ),
        (
            call("n", "aten.add.Tensor", "a", "b", shape=(3, 4)),
            [source("a", 3, 4), source("b", 4)],
            Cost(12, F32 * 16, F32 * 12),
        ),
        (call("n", "aten.exp.default", "a", shape=(6,)), [source("a", 6)], Cost(60, 24, 24)),
        (call("n", "aten.mean.dim", "a", (-1,), True, shape=(3, 1)), [source("a", 3, 4)], Cost(12, 48, 12)),
        (call("n", "aten.softmax.int", "a", -1, shape=(3, 4)), [source("a", 3, 4)], Cost(168, 48, 48)),
        (call("n", "aten.view.default", "a", (12,), shape=(12,), views=("a",)), [source("a", 3, 4)], Cost()),
        (call("n", "aten.clone.default", "a", shape=(3, 4)), [source("a", 3, 4)], Cost(0, 48, 48)),
        (
            call("n", "aten.relu_.default", "a", shape=(3, 4), views=("a",), writes=("a",)),
            [source("a", 3, 4)],
            Cost(12, 48, 48),
        ),
        (
            call("n", "aten.copy_.default", "a", "b", shape=(3, 4), views=("a",), writes=("a",)),
            [source("a", 3, 4), source("b", 3, 4)],
            Cost(0, 48, 48),
        ),
    ],
)
def test_of_usual_operations(node: Node, sources: list[Node], expected: Cost) -> None:
    assert cost(node, *sources) == expected


def test_a_lookup_reads_its_rows_alone() -> None:
    indices = Node("i", "input", "input", value=TensorValue((3,), "int64", (1,)), target="i")
    made = cost(call("n", "aten.embedding.default", "w", "i", shape=(3, 8)), source("w", 1000, 8), indices)
    assert made == Cost(0, 3 * 8 * 4 + 3 * 8, 3 * 8 * 4)


def test_an_expanded_dimension_is_read_once() -> None:
    wide = Node(
        "e",
        "call",
        "aten.expand.default",
        (Ref("a"), (9, 4)),
        value=TensorValue((9, 4), "float32", (0, 1)),
        views=("a",),
    )
    graph = Graph("g", [source("a", 4), wide, call("n", "aten.neg.default", "e", shape=(9, 4)), output("n")])
    assert graph.cost("n").bytes_read == 16


def test_a_fused_node_moves_its_arguments_and_results_only() -> None:
    body = [
        call("m", "aten.mul.Tensor", "a", "b", shape=(4,)),
        call("n", "aten.exp.default", "m", shape=(4,)),
    ]
    inner = Graph("elementwise", [source("a", 4), source("b", 4), *body, output("n")])
    fused = Node("n", "call", "fused.elementwise", (Ref("a"), Ref("b")), value=body[1].value, inner=inner)
    assert cost(fused, source("a", 4), source("b", 4)) == Cost(4 + 40, 32, 16)


def test_roofline_is_the_longer_of_work_and_traffic() -> None:
    peaks = Peaks(flops_per_s=100.0, bytes_per_s=10.0)
    assert roofline_s(Cost(1000, 10, 10), peaks) == 10.0
    assert roofline_s(Cost(10, 100, 100), peaks) == 20.0


def test_names_lose_what_is_not_the_operation() -> None:
    assert [base_name(op) for op in ("aten.mul_.Tensor", "aten.__and__.Tensor", "operator.getitem", "fused.gelu")] == [
        "mul", "and", "getitem", "gelu",
    ]  # fmt: skip
