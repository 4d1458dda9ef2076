"""Graphs of pointwise operators, read and refused."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from execution.compiler.backends.tvm import TemplateBackend, chain, families  # noqa: E402
from execution.compiler.port import Bucket, Subject  # noqa: E402


def subject_of(run: Callable[..., Any], *inputs: Any, params: tuple[Any, ...] = ()) -> Subject:
    class Module(torch.nn.Module):
        def forward(self, *arguments: Any) -> Any:
            return run(*arguments)

    rows = inputs[0].shape[0]
    return families.elementwise(Module(), inputs, params, rows=Bucket(rows, rows))


def test_halves_weights_and_constants() -> None:
    def run(x: Any, w: Any) -> Any:
        a, b = x.chunk(2, -1)
        return torch.sigmoid(a * w) * b - 2.5

    read = chain.read(subject_of(run, torch.ones(3, 8), params=(torch.ones(4),)))
    assert read.columns == 4
    used = {(o.argument, o.offset, o.reach.value) for o in read.operands}
    assert {(0, 0, "all"), (0, 4, "all"), (1, 0, "columns")} <= used
    assert [s.op for s in read.steps] == ["mul", "sigmoid", "mul", "sub"]
    assert read.steps[-1].arguments[1] == 2.5


@pytest.mark.slow
def test_in_place_operators_are_as_good_as_others() -> None:
    def run(x: Any) -> Any:
        y = torch.relu(x)
        z = y.mul_(x)
        return z + y

    read = chain.read(subject_of(run, torch.ones(3, 8)))
    relu, mul, add = read.steps
    assert (relu.op, mul.op, add.op) == ("relu", "mul", "add")
    assert add.arguments[0] == add.arguments[1]


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda x: torch.cumsum(x, -1), "cumsum"),
        pytest.param(lambda x: x @ x.t(), "aten.t.default", marks=pytest.mark.slow),
        (lambda x: (x * 2).split(4, dim=1)[0], "only arguments can be cut"),
        pytest.param(lambda x: x[1:], "slice", marks=pytest.mark.slow),
        pytest.param(lambda x: x.sum(-1, keepdim=True) * x, "sum", marks=pytest.mark.slow),
        (lambda x: x.double(), "float64"),
    ],
)
def test_what_is_not_pointwise_is_named(run: Callable[[Any], Any], reason: str) -> None:
    subject = subject_of(run, torch.ones(3, 8))
    with pytest.raises(chain.ChainError, match=reason):
        chain.read(subject)
    assert TemplateBackend().recipes(subject) == ()


def test_bytes_that_are_no_program() -> None:
    subject = subject_of(lambda x: x + 1, torch.ones(2, 4))
    broken = Subject("elementwise", subject.inputs, (), subject.bucket, 1, (), source=b"not a program")
    with pytest.raises(chain.ChainError, match="no exported program"):
        chain.read(broken)
