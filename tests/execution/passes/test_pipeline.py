from __future__ import annotations

import pytest

from execution.passes.base import Pass, known_passes, register
from execution.passes.fuse_elementwise import FuseElementwise
from execution.passes.pipeline import Pipeline, PipelineError
from tests.execution.passes.cases import elementwise

OURS = (
    "cse",
    "dce",
    "fold_constants",
    "functionalise",
    "fuse_elementwise",
    "fuse_patterns",
    "prepack",
    "simplify",
)


def test_a_string_there_and_back() -> None:
    text = "cse,dce,fold_constants,fuse_elementwise(max_inputs=4, min_nodes=3)"
    pipeline = Pipeline.parse(text)
    assert str(pipeline) == text
    assert pipeline.passes[3] == FuseElementwise(max_inputs=4, min_nodes=3)
    assert Pipeline.parse(str(pipeline)) == pipeline
    assert str(Pipeline.parse(" cse , fuse_elementwise( max_inputs = 8 ) ")) == "cse,fuse_elementwise"
    assert Pipeline.parse("") == Pipeline()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cse,nope", r"no pass is called 'nope'; known: .*cse, dce"),
        ("fuse_elementwize", "did you mean fuse_elementwise"),
        ("dce(fast=1)", "pass dce: no setting is called 'fast'; settings: it has none"),
        ("fuse_elementwise(most=1)", "settings: max_inputs, max_nodes, min_nodes"),
        ("fuse_elementwise(max_inputs='8')", "max_inputs is a int, not '8'"),
        ("fuse_elementwise(max_inputs=True)", "max_inputs is a int, not True"),
        ("fuse_elementwise(max_inputs=open('x'))", "is no plain value"),
        ("fuse_elementwise(8)", "write name or name\\(setting=value\\)"),
        ("cse,,dce", "is no pipeline"),
        ("cse)", "is no pipeline"),
    ],
)
def test_what_is_no_pipeline_is_told(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Pipeline.parse(text)


def test_all_passes_are_known_and_are_values() -> None:
    known = known_passes()
    assert set(OURS) <= set(known)
    for name, made in known.items():
        step = made()
        assert isinstance(step, Pass)
        assert step.name == name
        assert step == made()
        assert hash(step) == hash(made())
        assert step.exact or step.tolerance


def test_two_passes_may_not_share_a_name() -> None:
    with pytest.raises(ValueError, match="two passes are called 'cse'"):

        @register("cse")
        class Other:
            pass

    with pytest.raises(ValueError, match="say its tolerance"):
        register("inexact", exact=False)(object)


def test_stages_tell_what_each_pass_did() -> None:
    graph = elementwise()
    stages = list(Pipeline.parse("fuse_elementwise,dce").stages(graph))
    assert [step.name for step, _ in stages] == ["fuse_elementwise", "dce"]
    assert len(stages[0][1]) < len(graph)
    assert Pipeline.parse("fuse_elementwise,dce")(graph) == stages[-1][1]
