"""Horizontal fusion: siblings become one operation, answers stay, and what is measured to lose is left alone."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from execution.graph.capture import capture
from execution.graph.form import Graph
from execution.graph.node import GraphError
from execution.graph.rebuild import rebuild
from execution.passes.horizontal import Horizontal, merge
from execution.passes.horizontal_trial import MeasuredHorizontal, Trial, region
from execution.passes.pipeline import Pipeline
from tests.examples import some_slow


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, size) for size in (16, 16, 8))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        return scores.softmax(-1) @ self.value(x).view(x.shape[0], -1, 8)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(8, 24, bias=False), nn.Linear(8, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.gate(x)) * self.up(x)


class OwnInputs(nn.Module):
    """Towers with a scale and a norm each, over their own columns."""

    def __init__(self, towers: int = 6) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(4, 8) for _ in range(towers))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(towers))
        self.scales = nn.ParameterList(nn.Parameter(torch.rand(8)) for _ in range(towers))
        self.second = nn.ModuleList(nn.Linear(8, 3) for _ in range(towers))

    def forward(self, x: Tensor) -> Tensor:
        outs = []
        for part, first, norm, scale, second in zip(
            x.unbind(1), self.first, self.norms, self.scales, self.second, strict=True
        ):
            outs.append(second(norm(functional.gelu(first(part))) * scale))
        return torch.cat(outs, dim=1)


class SharedInput(nn.Module):
    def __init__(self, towers: int = 5) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(6, 8) for _ in range(towers))
        self.second = nn.ModuleList(nn.Linear(8, 6) for _ in range(towers))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outs = [second(first(x).relu()) for first, second in zip(self.first, self.second, strict=True)]
        total = outs[0]
        for out in outs[1:]:
            total = total + out
        return total, outs[2]


CASES: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "query, key and value": (Attention(), (2, 5, 16), 1),
    "gate and up": (Gated(), (3, 8), 1),
    "towers of their own inputs": (OwnInputs(), (3, 6, 4), 2),
    "towers of one input": (SharedInput(), (3, 6), 2),
    "towers of one input, three dimensions": (SharedInput(), (2, 3, 6), 2),
}
MATMULS = ("aten.linear.default", "aten.bmm.default", "aten.baddbmm.default")


def _case(name: str) -> tuple[nn.Module, Tensor, Graph, int]:
    module, shape, matmuls = CASES[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return module, x, capture(module.eval(), (x,)).graph, matmuls


@pytest.mark.parametrize("name", some_slow(CASES, "query, key and value"))
def test_siblings_are_merged_and_answers_stay(name: str) -> None:
    module, x, graph, matmuls = _case(name)

    made = Pipeline.parse("horizontal,dce")(graph)

    assert sum(node.op in MATMULS for node in made.calls) == matmuls
    torch.testing.assert_close(rebuild(made)(x), module(x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_stacking_needs_no_copies_where_inputs_were_split() -> None:
    _, _, graph, _ = _case("towers of their own inputs")
    made = Pipeline.parse("horizontal,dce")(graph)
    assert not any(node.op in {"aten.stack.default", "aten.unbind.int"} for node in made.calls)


def test_the_given_graph_is_unchanged() -> None:
    module, x, graph, _ = _case("gate and up")
    before = graph.nodes
    Horizontal()(graph)
    assert graph.nodes == before
    assert torch.equal(rebuild(graph)(x), module(x))


def test_what_depends_on_each_other_is_never_merged() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            for step in self.steps:
                x = step(x)
            return x

    graph = capture(Chain().eval(), (torch.zeros(2, 4),)).graph
    assert Horizontal()(graph) is graph


def test_weights_that_the_graph_computes_are_left_alone() -> None:
    class Computed(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return functional.linear(x, w) + functional.linear(x, w + 1)

    graph = capture(Computed(), (torch.zeros(2, 4), torch.zeros(4, 4))).graph
    assert Horizontal()(graph) is graph


def test_sizes_that_vary_are_refused() -> None:
    graph = capture(Gated().eval(), (torch.zeros(3, 8),), dynamic="rows").graph
    with pytest.raises(GraphError, match="specialise"):
        Horizontal()(graph)


@pytest.mark.slow
def test_one_component_may_be_merged_alone() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gated, self.towers = Gated(), SharedInput()

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            return (self.gated(x), *self.towers(y))

    inputs = torch.zeros(2, 8), torch.ones(2, 6)
    module = Two().eval()
    graph = capture(module, inputs).graph
    groups = Horizontal().groups(graph)
    linears = [
        sum(n.op in MATMULS for n in merge(graph, groups, {g}).calls) for g in {g.joins for g in groups}
    ]
    assert sorted(linears) == [4, 11]


@pytest.mark.slow
def test_trials_time_what_they_touch() -> None:
    module, x, graph, _ = _case("towers of their own inputs")
    (trial,) = MeasuredHorizontal(rounds=3).trials(graph)
    assert trial.members == 30  # linear, gelu, norm, scale, linear
    assert trial.apart_s > 0 < trial.merged_s
    assert Trial(0, 2, 2e-3, 1e-3).gain == 2.0
    part = region(graph, [name for group in Horizontal().groups(graph) for name in group.members])
    assert [node.name for node in part.inputs] == [node.name for node in graph.inputs]
    torch.testing.assert_close(rebuild(part)(x), module(x))


def test_what_does_not_win_stays_apart() -> None:
    _, _, graph, _ = _case("gate and up")
    assert MeasuredHorizontal(gain=1e9, rounds=1)(graph) is graph
