"""Modules are traced in another process, and the subject is the very same; what cannot go there is traced here."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from execution.compiler.port import Bucket, CompileError
from execution.graph.node import GraphError
from execution.live.subjects import engine_subject
from execution.live.tracing import Tracer, _packed

pytestmark = pytest.mark.slow
ROWS = Bucket(2, 8)
X = torch.ones(4, 24)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(24, 1024), nn.Linear(1024, 24)
        self.table: torch.Tensor
        self.register_buffer("table", torch.arange(24.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(torch.relu(self.up(x)))
        return x + y * self.table


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x


class Unsendable(nn.Module):
    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x)


@pytest.fixture(scope="module")
def tracer() -> Iterator[Tracer]:
    made = Tracer(priority="normal")
    yield made
    made.close()


@pytest.mark.parametrize("module", [Mlp(), nn.Linear(24, 1024)], ids=["graph", "family"])
def test_the_subject_is_what_it_would_be_here_and_weights_do_not_travel(
    module: nn.Module, tracer: Tracer
) -> None:
    assert len(_packed((module, X), module)) < 1 << 15
    found = tracer.trace(module, X, ROWS, 1).subject()
    here = engine_subject(module, X, ROWS, 1)
    assert found == here
    assert found.source


def test_what_is_no_function_of_its_inputs_is_refused_by_reason(tracer: Tracer) -> None:
    with pytest.raises(CompileError, match=r"Branching|data-dependent|does not export"):
        tracer.trace(Branching(), X, ROWS, 1).subject()


def test_what_cannot_be_sent_is_traced_here(tracer: Tracer) -> None:
    module = Unsendable(lambda x: torch.relu(x) * 2.0)
    tracing = tracer.trace(module, X, ROWS, 1)
    assert tracing.done(within_s=0.0)
    assert tracing.subject() == engine_subject(module, X, ROWS, 1)
    with pytest.raises(GraphError):
        tracer.trace(Unsendable(lambda x: x if float(x.sum()) > 0 else -x), X, ROWS, 1).subject()
