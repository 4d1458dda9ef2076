from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.graph.node import GraphError
from execution.graph.rebuild import rebuild
from execution.passes.cse import CommonSubexpressions
from execution.passes.dce import DeadCode
from execution.passes.fold_constants import FoldConstants
from execution.passes.functionalise import Functionalise
from execution.passes.fuse_elementwise import FuseElementwise
from execution.passes.fuse_patterns import FusePatterns
from execution.passes.group import Clusters, Group, fuse
from execution.passes.pipeline import Pipeline
from execution.passes.prepack import Prepack
from execution.passes.simplify import Simplify
from execution.passes.specialise import Specialise
from tests.examples import up_to
from tests.execution.graph.builders import random_graph_module
from tests.execution.passes import cases

STEPS = ("functionalise", "simplify", "cse", "dce", "fold_constants", "fuse_patterns", "fuse_elementwise")


@pytest.mark.slow
@settings(max_examples=up_to(30))
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(2, 24),
    steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=5),
)
def test_any_pipeline_keeps_every_bit_of_any_graph(seed: int, size: int, steps: list[str]) -> None:
    module = random_graph_module(seed, size)
    graph = cases.of_random(module)
    made = rebuild(Pipeline.parse(",".join(steps))(graph))
    generator = torch.Generator().manual_seed(seed)
    args = [torch.randn(4, 6, generator=generator) for _ in range(2)]
    args[0][0, 0], args[1][1, 1] = -0.0, float("nan")
    ours, theirs = [arg.clone() for arg in args], [arg.clone() for arg in args]
    expected, got = (*module(*ours), *ours), (*made(*theirs), *theirs)  # inputs too: some are written to
    for first, second in zip(expected, got, strict=True):
        assert torch.equal(first.contiguous().view(torch.int32), second.contiguous().view(torch.int32)), (
            "bits differ"
        )


def test_cse_leaves_random_draws_and_results_apart() -> None:
    after = CommonSubexpressions()(cases.cse())
    assert "twin" not in after
    assert {"r1", "r2", "one", "float", "before", "after"} <= {node.name for node in after}


def test_dce_keeps_what_acts_and_all_inputs() -> None:
    after = DeadCode()(cases.dce())
    assert {node.name for node in after.calls} == {"random", "write", "y"}
    assert [node.name for node in after.inputs] == ["x", "unused"]
    assert "dead_weight" not in after.tensors


def test_adding_a_float_zero_is_no_no_op() -> None:
    after = Simplify()(cases.simplify())
    assert {"zero", "handed"} <= {node.name for node in after}
    assert not {"same", "minus", "view", "t1", "t2", "copy", "ints"} & {
        node.name for node in DeadCode()(after)
    }


def test_folding_stops_at_its_limits() -> None:
    graph = cases.fold()
    assert FoldConstants(weights=False)(graph) is graph
    folded = FoldConstants()(graph)
    assert folded["bent"].kind == "constant"
    assert folded["counted"].kind == "call"  # its buffer is written to
    assert torch.equal(folded.tensors["folded.bent"], torch.exp(graph.tensors["w"] * 2))


def test_packed_weights_lie_transposed_and_once() -> None:
    graph = cases.prepack()
    after = DeadCode()(Prepack()(graph))
    packed = [node for node in after.holders if node.target.startswith("packed.")]
    assert [node.target for node in packed] == ["packed.w"]
    assert torch.equal(after.tensors["packed.w"], graph.tensors["w"].t())
    assert after.tensors["packed.w"].is_contiguous()
    assert "small" in after.tensors


def test_functionalise_leaves_foreign_memory_alone() -> None:
    after = Functionalise()(cases.functionalise())
    ops = {node.name: node.op for node in after.calls}
    assert ops["relu_"] == "aten.relu.default"
    assert ops["mul_"] == "aten.mul.Tensor"
    assert ops["put"] == "aten.add_.Tensor"  # the caller's tensor
    assert ops["add_"] == "aten.add_.Tensor"  # a view of it is read later
    assert {node.name for node in Functionalise()(after) if node.writes} == {"put", "add_"}


def test_patterns_are_found_with_their_figures() -> None:
    after = FusePatterns()(cases.patterns())
    found = {node.op: dict(node.attrs) for node in after.calls}
    assert found == {
        "fused.rms_norm": {"eps": 1e-6},
        "fused.silu_mul": {},
        "fused.softmax": {},
        "fused.gelu": {},
        "fused.layer_norm": {"eps": 1e-5},
    }
    assert after["layer"].inner is not None
    near = cases.near_patterns()
    assert FusePatterns()(near) is near


def test_only_the_kinds_asked_for_are_fused() -> None:
    after = FusePatterns(kinds="softmax")(cases.patterns())
    assert [node.op for node in after if node.inner is not None] == ["fused.softmax"]


def test_elementwise_groups_respect_their_limits() -> None:
    graph = cases.elementwise()
    after = FuseElementwise()(graph)
    fused = {node.name: node for node in after if node.inner is not None}
    assert {
        name: [inner.name for inner in node.inner.calls] for name, node in fused.items() if node.inner
    } == {
        "d": ["a", "c", "d"],
        "h": ["f", "h"],  # e is used outside
    }
    assert not [node for node in FuseElementwise(min_nodes=4)(graph) if node.inner is not None]
    narrow = FuseElementwise(max_inputs=1)(graph)
    assert {len(node.args) for node in narrow if node.inner is not None} <= {1}


def test_nothing_may_lie_between_members_of_a_group() -> None:
    graph = cases.elementwise()
    clusters = Clusters(graph)
    assert not clusters.joinable(("d", "e"))  # the product lies between
    assert clusters.joinable(("c", "d"))
    with pytest.raises(GraphError, match="others lie between"):
        fuse(graph, [Group("bad", ("d", "e"))])
    with pytest.raises(GraphError, match="c is in two groups"):
        fuse(graph, [Group("one", ("c", "d")), Group("two", ("a", "c"))])


def test_a_group_of_several_results_hands_out_items() -> None:
    graph = cases.elementwise()
    after = fuse(graph, [Group("pair", ("e", "f"))])
    assert after["fused_f"].inner is not None
    x = torch.rand(4, 8)
    assert all(torch.equal(a, b) for a, b in zip(rebuild(graph)(x), rebuild(after)(x), strict=True))


def test_a_bucket_narrows_the_symbol_or_removes_it() -> None:
    graph = cases.specialise()
    (narrow,) = Specialise(least=2, most=16)(graph).symbols
    assert (narrow.least, narrow.most) == (2, 16)
    fixed = Specialise(symbol="rows", least=4, most=4)(graph)
    assert not fixed.symbols
    assert not {"size", "twice"} & {node.name for node in fixed}
    assert fixed["flat"].args[1] == (8, 4)
    with pytest.raises(GraphError, match="rows goes from 1 to 64, not from 1 to 100"):
        Specialise(least=1, most=100)(graph)
    with pytest.raises(GraphError, match="There are rows"):
        Specialise(symbol="columns", least=1, most=1)(graph)
