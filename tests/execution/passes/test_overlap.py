"""Lanes: the same bits whatever runs beside what, and errors reach the caller."""

import pytest
import torch
from torch import Tensor, nn

from execution.graph.capture import capture
from execution.graph.form import Graph
from execution.graph.node import GraphError
from execution.passes.overlap import LanePlan, Overlap, OverlapModule


class Branches(nn.Module):
    def __init__(self, branches: int = 4) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(256, 256) for _ in range(branches))
        self.second = nn.ModuleList(nn.Linear(256, 256) for _ in range(branches))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outs = [second(first(x).relu()) for first, second in zip(self.first, self.second, strict=True)]
        return torch.stack(outs).sum(0), outs[0]


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a = x * 2
        before = a.exp()
        a.add_(1)
        return before + a.sin()


@pytest.fixture(scope="module")
def branches() -> tuple[nn.Module, Graph, Tensor]:
    module = Branches()
    return module, *_captured(module, 32, 256)


def _captured(module: nn.Module, *shape: int) -> tuple[Graph, Tensor]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return capture(module.eval(), (x,)).graph, x


@pytest.mark.parametrize("lanes", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_bits_are_the_same(branches: tuple[nn.Module, Graph, Tensor], lanes: int) -> None:
    module, graph, x = branches
    made = OverlapModule(graph, Overlap(lanes).plan(graph))
    try:
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(made(x), module(x), strict=True))
    finally:
        made.close()


def test_branches_are_spread_and_gain_is_expected() -> None:
    graph, _ = _captured(Branches(), 128, 256)
    plan = Overlap(2).plan(graph)
    assert all(plan.lanes)
    assert 1.3 < plan.gain <= 2.0
    assert Overlap(1).plan(graph).gain == pytest.approx(1.0)


def test_writes_keep_their_order_across_lanes() -> None:
    module = Writes()
    graph, x = _captured(module, 64)
    one, two = ("mul", "add_", "add"), ("exp", "sin")
    names = {node.name: node for node in graph.calls}
    assert set(names) == {*one, *two}
    made = OverlapModule(graph, LanePlan((one, two), 1.0, 1.0))
    try:
        for _ in range(50):
            assert torch.equal(made(x), module(x))
    finally:
        made.close()


def test_errors_of_a_lane_reach_the_caller() -> None:
    graph, x = _captured(Branches(), 128, 256)
    made = OverlapModule(graph, Overlap(2).plan(graph))
    try:
        with pytest.raises(RuntimeError):
            made(x[:, :7])
    finally:
        made.close()


def test_the_callers_thread_count_stays() -> None:
    before = torch.get_num_threads()
    graph, _ = _captured(Branches(), 8, 256)
    OverlapModule(graph, Overlap(2).plan(graph), threads=1).close()
    assert torch.get_num_threads() == before


def test_random_draws_and_foreign_plans_are_refused() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    graph, _ = _captured(Noise(), 4)
    with pytest.raises(GraphError, match="effects"):
        Overlap(2).plan(graph)
    other, _ = _captured(Branches(), 8, 256)
    with pytest.raises(GraphError, match="another graph"):
        OverlapModule(other, LanePlan((("mul",),), 1.0, 1.0))
