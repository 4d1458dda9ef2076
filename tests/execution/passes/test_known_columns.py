"""Pruning by what is known of a mask."""

import pytest
import torch
from torch import Tensor, nn

from execution.graph.capture import capture
from execution.graph.form import Graph
from execution.graph.node import GraphError
from execution.graph.rebuild import rebuild
from execution.passes.calm import Calm
from execution.passes.known_columns import KnownColumns
from tests.examples import some_slow


class Masked(nn.Module):
    """Two branches, each under its column of the mask; attention over what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        a = self.left(x) * present[:, 0:1]
        b = self.right(x) * present[:, 1:2]
        tokens = torch.stack([a, b], dim=1)
        some = present | ~present.any(dim=1, keepdim=True)
        seen = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=some[:, None, :])
        weights = present.to(x.dtype)[:, :, None]
        return a + b + (seen * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def _graph() -> tuple[Masked, Tensor, Graph]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Masked().eval()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    return module, x, capture(module, (x, torch.ones(3, 2, dtype=torch.bool))).graph


@pytest.mark.parametrize("columns", some_slow(["11", "10", "01", "00", "?0", "1?", "??"], "10", "?0"))
def test_answers_stay_where_columns_are_as_told(columns: str) -> None:
    module, x, graph = _graph()
    made = rebuild(KnownColumns("present", columns)(graph))
    for unknown in (False, True):
        rows = [[c == "1" or (c == "?" and (unknown ^ bool(row))) for c in columns] for row in range(3)]
        present = torch.tensor(rows)
        assert torch.equal(made(x, present), module(x, present)), (columns, rows)


def test_what_is_absent_is_not_computed() -> None:
    _, _, graph = _graph()
    linears = {
        columns: [n.op for n in KnownColumns("present", columns)(graph).calls].count("aten.linear.default")
        for columns in ("11", "1?", "10", "00")
    }
    assert linears == {"11": 2, "1?": 2, "10": 1, "00": 0}


def test_a_mask_that_is_true_everywhere_is_none() -> None:
    _, _, graph = _graph()
    made = KnownColumns("present", "11")(graph)
    (attention,) = (node for node in made.calls if "attention" in node.op)
    assert attention.args[3] is None
    assert not any("any" in node.op or "__or__" in node.op for node in made.calls)


def test_nothing_known_changes_nothing() -> None:
    _, _, graph = _graph()
    assert KnownColumns("present", "??")(graph) is graph


@pytest.mark.parametrize(
    ("given", "columns", "told"),
    [("presence", "10", "no input 'presence'"), ("present", "101", "2 columns, told '101'")],
)
def test_what_does_not_fit_is_refused(given: str, columns: str, told: str) -> None:
    _, _, graph = _graph()
    with pytest.raises(GraphError, match=told):
        KnownColumns(given, columns)(graph)


def test_attention_without_dropout_draws_nothing() -> None:
    _, _, graph = _graph()
    made = Calm()(graph)
    assert not any(node.effect for node in made.calls)
    assert Calm()(made) is made
