"""Memory-aware order and reuse on real modules: fewer live bytes, measured as predicted, and the same bits."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from execution.graph.capture import capture
from execution.graph.form import Graph
from execution.graph.rebuild import rebuild
from execution.passes.memory_order import MemoryOrder
from execution.passes.memory_reuse import Reuse, staged
from execution.passes.pipeline import Pipeline
from execution.regimes.memory import MeasuredPeak, allocator_peak_bytes, measured_peak
from tests.examples import some_slow


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(8, 64) for _ in range(4))
        self.down = nn.ModuleList(nn.Linear(64, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = [functional.gelu(up(x)) for up in self.up]
        return torch.cat([down(h) for down, h in zip(self.down, hidden, strict=True)], dim=1)


class WritesInPlace(nn.Module):
    """Views and writes whose order carries meaning."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = x * 2
        head = a[:2]
        before = head + 1
        head.add_(5)  # seen through `a` by what follows, not by `before`
        big = torch.cat([a, a, a])
        after = a.sum(0)
        return before.sum(0) + after, big.relu().sum(0)


class Shared(nn.Module):
    """A result that is also used further on must not be written over."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = x + 1
        b = a.relu()
        return a, b.mul(b) + a


def _graph(module: nn.Module, x: Tensor) -> Graph:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
    return capture(module.eval(), (x,)).graph


def _run(graph: Graph, x: Tensor) -> MeasuredPeak:
    return measured_peak(rebuild(graph), (x,))


def _same(one: object, other: object) -> bool:
    mine = one if isinstance(one, tuple) else (one,)
    theirs = other if isinstance(other, tuple) else (other,)
    return all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("module", [Towers(), WritesInPlace(), Shared()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize(
    "pipeline", some_slow(["memory_order", "memory_reuse", "memory_reuse(staging=False)"], "memory_reuse")
)
def test_bits_stay_the_same(module: nn.Module, pipeline: str) -> None:
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    graph = _graph(module, x)
    made = Pipeline.parse(pipeline)(graph)

    assert _same(rebuild(made)(x.clone()), module(x.clone()))
    assert _run(made, x).bytes <= _run(graph, x).bytes


def test_predicted_peaks_are_the_measured_ones() -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    graph = _graph(Towers(), x)
    found = MemoryOrder().solve(graph)
    less, plan = Reuse().plan(graph)

    program, ordered, reused = (_run(g, x).bytes for g in (graph, MemoryOrder()(graph), less))

    assert (program, ordered, reused) == (found.program_peak_bytes, found.peak_bytes, plan.peak_bytes)
    assert reused < ordered < program / 1.9
    assert found.minimal


def test_the_allocator_agrees() -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    graph = _graph(Towers(), x)
    assert allocator_peak_bytes(rebuild(graph), (x,)) >= _run(graph, x).bytes
    best = MemoryOrder()(graph)
    assert allocator_peak_bytes(rebuild(best), (x,)) < allocator_peak_bytes(rebuild(graph), (x,))


def test_joins_are_staged() -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    graph = _graph(Towers(), x)
    made = staged(graph)
    assert [node.op for node in made.calls].count("aten.copy_.default") == 4
    assert "aten.cat.default" not in {node.op for node in made.calls}
    assert torch.equal(rebuild(made)(x), rebuild(graph)(x))


def test_a_graph_that_cannot_be_bettered_is_given_back() -> None:
    graph = _graph(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.zeros(2, 4))
    assert MemoryOrder()(graph) is graph


def test_what_a_call_frees_is_not_its_peak() -> None:
    def chain(x: Tensor) -> Tensor:
        for _ in range(5):
            x = x + 1
        return x

    x = torch.zeros(256)
    assert measured_peak(chain, (x,)).bytes == 2 * 1024
