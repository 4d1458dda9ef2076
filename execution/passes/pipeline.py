"""Pipelines: passes in order, read from a string and written to the same; the string is stored with each artifact.

    cse,dce,fold_constants,fuse_elementwise(max_inputs=8)

Settings that have their default are not written, so that equal pipelines have equal strings.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from execution.graph.form import Graph
from execution.passes.base import Pass, known_passes, settings_of


class PipelineError(ValueError):
    """A pipeline string says something that is not there; the message tells what is."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Passes one after another."""

    passes: tuple[Pass, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Of a string. Raises PipelineError for unknown passes, unknown settings and values of the wrong type."""
        known = known_passes()
        return cls(tuple(_parse_pass(tree, known) for tree in _items(text)))

    def __call__(self, graph: Graph) -> Graph:
        """The graph after all passes."""
        for step in self.passes:
            graph = step(graph)
        return graph

    def stages(self, graph: Graph) -> Iterator[tuple[Pass, Graph]]:
        """Each pass with the graph after it."""
        for step in self.passes:
            graph = step(graph)
            yield step, graph

    @property
    def exact(self) -> bool:
        """Whether all passes keep every bit."""
        return all(step.exact for step in self.passes)

    def __str__(self) -> str:
        return ",".join(pass_text(step) for step in self.passes)


def pass_text(step: Pass) -> str:
    """`name`, or `name(setting=value, ...)` where settings differ from their defaults."""
    told = [
        f"{field.name}={getattr(step, field.name)!r}"
        for field in fields(step)  # type: ignore[arg-type]
        if getattr(step, field.name) != field.default
    ]
    return f"{step.name}({', '.join(told)})" if told else step.name


def _items(text: str) -> list[ast.expr]:
    if not text.strip():
        return []
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
    except SyntaxError as error:
        raise PipelineError(f"{text!r} is no pipeline: write passes like cse,dce,name(setting=1)") from error
    return tree.elts if isinstance(tree, ast.List) else []


def _parse_pass(tree: ast.expr, known: dict[str, type[Any]] | Any) -> Pass:
    match tree:
        case ast.Name(id=name):
            keywords: list[ast.keyword] = []
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            pass
        case _:
            raise PipelineError(f"{ast.unparse(tree)!r} is no pass: write name or name(setting=value)")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise PipelineError(f"no pass is called {name!r}; {hint}known: {', '.join(known)}")
    return known[name](**dict(_setting(name, known[name], keyword) for keyword in keywords))  # type: ignore[no-any-return]


def _setting(name: str, made: type[Any], keyword: ast.keyword) -> tuple[str, Any]:
    defaults = settings_of(made)
    if keyword.arg is None or keyword.arg not in defaults:
        told = ", ".join(defaults) or "it has none"
        raise PipelineError(f"pass {name}: no setting is called {keyword.arg!r}; settings: {told}")
    try:
        value = ast.literal_eval(keyword.value)
    except ValueError as error:
        raise PipelineError(
            f"pass {name}: {keyword.arg}={ast.unparse(keyword.value)} is no plain value"
        ) from error
    wanted = type(defaults[keyword.arg])
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise PipelineError(f"pass {name}: {keyword.arg} is a {wanted.__name__}, not {value!r}")
    return keyword.arg, value
