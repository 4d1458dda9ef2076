from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from execution.compiler.port import Bucket, TensorSpec
from execution.graph.node import GraphError
from execution.graph.subject import parameters_of, subject_of
from tests.execution.graph.builders import GatedMlp


@pytest.mark.slow
def test_the_source_is_the_module_with_its_weights_as_inputs() -> None:
    model = GatedMlp().eval()
    example = torch.randn(2, 8)
    subject = subject_of(model, (example,), op="graph", bucket=Bucket(1, 16), threads=1, attrs={"eps": 1e-6})
    assert subject.inputs == (TensorSpec((16, 8), "float32"),)
    assert [spec.shape for spec in subject.params] == [tuple(p.shape) for p in parameters_of(model)]
    assert dict(subject.attrs)["eps"] == 1e-6
    reference = torch.export.load(io.BytesIO(subject.source)).module()
    for rows in (1, 5, 16):
        x = torch.randn(rows, 8)
        with torch.no_grad():
            assert torch.equal(reference(x, *parameters_of(model)), model(x))
    torch.manual_seed(9)
    other = GatedMlp().eval()
    nn.init.normal_(other.down.weight)
    again = subject_of(other, (example,), op="graph", bucket=Bucket(1, 16), threads=1, attrs={"eps": 1e-6})
    assert again.key == subject.key  # one artifact for all layers of one form
    narrow = subject_of(model, (example,), op="graph", bucket=Bucket(4, 4), threads=1)
    assert narrow.key != subject.key


@pytest.mark.slow
def test_tied_weights_are_taken_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    model[1].weight = model[0].weight
    subject = subject_of(model, (torch.randn(3, 8),), op="graph", bucket=Bucket(3, 3), threads=1)
    assert len(subject.params) == len(parameters_of(model)) == 3
    x = torch.randn(3, 8)
    reference = torch.export.load(io.BytesIO(subject.source)).module()
    assert torch.equal(reference(x, *parameters_of(model)), model(x))


@pytest.mark.slow
def test_a_module_that_keeps_state_is_no_subject() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(1)
            return x + self.count

    with pytest.raises(GraphError, match=r"Counts .*writes to its own buffers"):
        subject_of(Counts(), (torch.randn(2, 2),), op="graph", bucket=Bucket(1, 4), threads=1)


def test_a_subject_takes_tensors_with_rows() -> None:
    with pytest.raises(GraphError, match="the first one has rows"):
        subject_of(nn.Identity(), (), op="graph", bucket=Bucket(1, 1), threads=1)
