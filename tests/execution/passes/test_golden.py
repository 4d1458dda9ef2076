"""Before and after each pass, as text. `UPDATE_GOLDEN=1 pytest tests/execution/passes/test_golden.py` writes it anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from execution.graph.form import Graph
from execution.graph.node import TensorValue, resolve
from execution.graph.rebuild import rebuild
from execution.graph.text import text_of
from execution.passes.pipeline import Pipeline
from tests.examples import some_slow
from tests.execution.passes.cases import CASES

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", CASES)
def test_before_and_after(name: str) -> None:
    make, pipeline = CASES[name]
    before = make()
    after = Pipeline.parse(pipeline)(before)
    text = f"{text_of(before)}---- {pipeline}\n{text_of(after)}"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", some_slow(CASES, *(name for name in CASES if name != "prepack")))
def test_passes_keep_the_signature_and_the_values(name: str) -> None:
    make, text = CASES[name]
    before, pipeline = make(), Pipeline.parse(text)
    after = pipeline(make())
    assert after.signature == before.signature
    assert [node.name for node in after.inputs] == [node.name for node in before.inputs]
    expected, got = run(before), run(after)
    for first, second in zip(expected, got, strict=True):
        if pipeline.exact:
            assert torch.equal(first, second)
        else:
            torch.testing.assert_close(first, second, rtol=0, atol=1e-6 * float(first.abs().max()))


def run(graph: Graph) -> list[torch.Tensor]:
    """Results, and the inputs after the call, since some graphs write to them."""
    generator = torch.Generator().manual_seed(0)
    args = []
    for node in graph.inputs:
        assert isinstance(node.value, TensorValue)
        shape = [resolve(dim, graph.sizes) for dim in node.value.shape]
        made = torch.randn(shape, generator=generator).abs().clamp(0.1, 0.9)
        args.append((made * 10).long() if node.value.dtype == "int64" else made)
    held = {name: tensor.clone() for name, tensor in graph.tensors.items()}
    module = rebuild(graph.replace(tensors=held))
    torch.manual_seed(7)
    results = module(*args)
    return [*(results if isinstance(results, tuple) else (results,)), *args]
