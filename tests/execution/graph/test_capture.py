from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 torch's own name for it
from torch.utils import _pytree as pytree

from execution.graph.capture import Capture, capture
from execution.graph.node import GraphError
from execution.graph.rebuild import rebuild
from execution.graph.sources import open_source
from execution.graph.text import digest
from tests.execution.graph.builders import Branching, GatedMlp


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(first: Any, second: Any) -> bool:
    ours, spec = pytree.tree_flatten(first)
    theirs, other = pytree.tree_flatten(second)
    return spec == other and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(ours, theirs, strict=True)
    )


@pytest.fixture(scope="module")
def gated() -> tuple[GatedMlp, Capture]:
    model = GatedMlp()
    return model, capture(model, (tensor(4, 8),), dynamic={"x": {0: ("rows", 1, 64)}})


def test_rebuilt_gives_the_same_bits_for_all_sizes(gated: tuple[GatedMlp, Capture]) -> None:
    model, captured = gated
    model.eval()
    made = rebuild(captured.graph)
    for rows in (1, 2, 7, 64):
        x = tensor(rows, 8, seed=rows)
        assert same(made(x), model(x))


def test_a_capture_tells_ranges_modules_and_effects(gated: tuple[GatedMlp, Capture]) -> None:
    graph = gated[1].graph
    (rows,) = graph.symbols
    assert (rows.name, rows.least, rows.most, rows.example) == ("rows", 1, 64, 4)
    assert graph["linear"].scope == "gate"
    assert graph["mul_"].writes == ("silu",)
    assert graph["dropout"].views == ("linear_2",)  # in evaluation it gives its argument back
    assert not graph["dropout"].effect
    assert {node.target for node in graph.holders} == {name for name, _ in gated[0].named_parameters()}


def test_the_model_stays_as_it_was(gated: tuple[GatedMlp, Capture]) -> None:
    model = GatedMlp().train()
    before = dict(model.named_parameters())
    capture(model, (tensor(2, 8),))
    assert model.training
    assert all(value is before[name] for name, value in model.named_parameters())
    del gated


@pytest.mark.slow
def test_layers_of_one_form_have_one_digest(gated: tuple[GatedMlp, Capture]) -> None:
    torch.manual_seed(5)
    other = GatedMlp()
    nn.init.normal_(other.gate.weight)
    again = capture(other, (tensor(4, 8),), dynamic={"x": {0: ("rows", 1, 64)}}).graph
    assert digest(again) == digest(gated[1].graph)
    assert digest(capture(other, (tensor(4, 8),)).graph) != digest(again)


@pytest.mark.slow
def test_parts_that_export_replace_theirs_and_the_rest_is_reported() -> None:
    model = Branching().eval()
    captured = capture(model, (tensor(3, 8),))
    assert not captured.whole
    assert [part.name for part in captured.parts] == ["first", "layers.0", "layers.1"]
    assert [item.name for item in captured.refused] == ["", "unused"]
    assert "data-dependent" in captured.refused[0].reason
    assert "not called" in captured.refused[1].reason
    with pytest.raises(GraphError, match="Branching is no single graph"):
        _ = captured.graph
    module = captured.module()
    for seed in range(6):
        x = tensor(3, 8, seed=seed)
        assert same(module(x), model(x))
    assert type(module.get_submodule("first")).__name__ == "Guarded"
    assert model.first is not module.get_submodule("first")


def test_inputs_beyond_the_ranges_run_the_original(gated: tuple[GatedMlp, Capture]) -> None:
    model, captured = gated
    guarded: Any = captured.module()
    model.eval()
    cases = {
        "in range": (tensor(64, 8), True),
        "too many rows": (tensor(65, 8), False),
        "another width of batch": (tensor(2, 3, 8), False),
        "another type": (tensor(4, 8).double(), False),
        "odd strides": (tensor(8, 4).t(), False),
    }
    for name, (x, fits) in cases.items():
        assert guarded.admits((x,), {}) is fits, name
    assert guarded.admits((), {"x": tensor(4, 8)}) is False  # called in another way
    x = tensor(65, 8)
    assert same(guarded(x), model(x))


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"y": {0: "rows"}}, "no input is called 'y'; there are x"),
        ({"x": {2: "rows"}}, "dimensions 0 to 1, not 2"),
    ],
)
def test_sizes_that_are_not_there_are_refused(dynamic: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        capture(GatedMlp(), (tensor(4, 8),), dynamic=dynamic)
    with pytest.raises(GraphError, match="give an example of 2 or more"):
        capture(GatedMlp(), (tensor(1, 8),), dynamic="rows")


def test_a_model_that_does_not_run_says_why() -> None:
    with pytest.raises(GraphError, match="GatedMlp does not run on the example input: RuntimeError"):
        capture(GatedMlp(), (tensor(4, 9),))


class Nested(nn.Module):
    """Nested arguments and results, a constant argument, a keyword."""

    def forward(self, pair: tuple[Tensor, dict[str, Tensor]], times: int, *, shift: Tensor) -> dict[str, Any]:
        first, rest = pair
        return {"sum": [first * times + shift, rest["a"]], "rows": first.shape[0]}


class Stateful(nn.Module):
    """Counts its calls in a buffer, and writes to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        x[:, 0].mul_(2)
        return x + self.count


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cell(x)[0]
        return out


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.pool(F.relu_(self.norm(self.conv(x)))), 1).flatten(1)


class Sliced(nn.Module):
    """Views of views, written to."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.clone()
        y[1:, ::2].add_(1)
        a, b = y.chunk(2, dim=-1)
        a.mul_(b)
        return y, torch.cat([b, a], -1).permute(1, 0)


def attention() -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], dict[str, Any]]] = {
    "gated": (GatedMlp, (tensor(3, 8),), {}),
    "nested": (Nested, ((tensor(3, 2), {"a": tensor(2, 2)}), 3), {"shift": tensor(2)}),
    "stateful": (Stateful, (tensor(3, 2),), {}),
    "recurrent": (Recurrent, (tensor(2, 5, 8),), {}),
    "convolutional": (Convolutional, (tensor(2, 3, 8, 8),), {}),
    "sliced": (Sliced, (tensor(4, 6),), {}),
    "transformer": (attention, (tensor(2, 5, 16),), {}),
    "embedding": (lambda: nn.Embedding(10, 4), (torch.tensor([[1, 2], [3, 4]]),), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_there_and_back_on_many_modules(name: str, decompose: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's own fused transformer layer is another kernel than its parts: compare like with like
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    make, args, kwargs = MODULES[name]
    torch.manual_seed(0)
    model = make().eval()
    torch.manual_seed(0)
    twin = make().eval()  # counts by itself
    captured = capture(twin, args, kwargs, decompose=decompose)
    made = rebuild(captured.graph)

    def copied(value: Any) -> Any:
        return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)

    for _ in range(2):  # twice, so that what is written shows
        ours, theirs = copied(args), copied(args)
        with torch.no_grad():
            first, second = made(*ours, **kwargs), model(*theirs, **kwargs)
        if decompose:  # other operations, hence other roundings
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
        else:
            assert same(first, second)
        assert same(ours, theirs) or decompose


@pytest.mark.slow
def test_parts_of_the_engine_are_captured() -> None:
    for part in ("layers.0.mlp", "layers.0.attention_norm", "layers.0.attention.qkv", "head"):
        source = open_source(f"tiny-llama:{part}", ["rowsx256"])
        captured = capture(source.module, source.args, dynamic=source.dynamic)
        x = tensor(9, 256)
        assert same(rebuild(captured.graph)(x), source.module(x))
