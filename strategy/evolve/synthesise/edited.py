"""What an edit is: parts of a policy in, changed parts with words for them out."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import libcst as cst

from strategy.evolve.parts import API, LINE_LENGTH, Parts
from strategy.evolve.syntax import parse
from strategy.evolve.synthesise.layout import statement


@dataclass(frozen=True, slots=True)
class Edited:
    """What an edit made of a policy, and how to say it."""

    parts: Parts
    what: str
    why: str


Edit = Callable[[Parts, random.Random], Edited | None]
"""An edit; None: it does not apply to this policy."""


def function_of(text: str) -> ast.FunctionDef:
    """The syntax tree of a function's text."""
    node = parse(text).body[0]
    if not isinstance(node, ast.FunctionDef):
        raise TypeError(f"not a function: {text[:60]!r}")
    return node


def with_function(
    parts: Parts,
    name: str,
    text: str,
    constants: Mapping[str, str] | None = None,
    names: Sequence[str] = (),
) -> Parts:
    """Parts with another text for one function, and the constants and names of the policy API that it needs;
    constants that are there already keep their values.
    """
    new = {k: v for k, v in (constants or {}).items() if k not in parts.constants}
    return replace(
        parts,
        functions={**parts.functions, name: text},
        constants={**parts.constants, **new},
        names={**parts.names, **dict.fromkeys(names, API)},
    )


def amended(text: str, remark: str) -> str:
    """The function with a remark at the end of its docstring's line, where there is room for one."""
    lines = text.splitlines()
    for index, line in enumerate(lines[:3]):
        stripped = line.strip()
        if stripped.startswith('"""') and stripped.endswith('."""') and len(stripped) > 6:
            longer = line.rstrip()[: -len('."""')] + f"; {remark}." + '"""'
            if len(longer) <= LINE_LENGTH:
                lines[index] = longer
            break
    return "\n".join(lines)


def rewritten(text: str, node: ast.stmt, head: str, value: cst.BaseExpression, tail: str = "") -> str:
    """The function with `head value tail` in the place of a statement, or of the first line of an `if`.

    Raises:
        LayoutError: the new statement cannot be laid out, or a comment would be lost.
    """
    last = node.test.end_lineno if isinstance(node, ast.If) else node.end_lineno
    lines = text.splitlines()
    lines[node.lineno - 1 : last] = statement(head, value, tail, " " * node.col_offset)
    return "\n".join(lines)


def parsed(text: str, node: ast.expr) -> cst.BaseExpression:
    """The libcst tree of an expression of a function's text, as it is written there."""
    source = ast.get_source_segment(text, node) or ast.unparse(node)
    return cst.parse_expression(f"({source})" if "\n" in source else source)
