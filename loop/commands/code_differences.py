"""What one policy's code does differently from another's: which functions, which constants, in words."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

from loop.contracts import PolicySource
from strategy.evolve.parts import Parts, take_apart
from strategy.policy import FUNCTIONS, summary_of

_COMMENT = re.compile(r"#\s*(?:-?[\d.e+]+\s+to\s+-?[\d.e+]+\s*:\s*)?(.*)")

PURPOSE = {
    "should_replan": "trigger",
    "plan": "planner",
    "route": "routing",
    "priority": "queue order",
}


@dataclass(frozen=True, slots=True)
class FunctionDifference:
    """One of the four functions in both policies."""

    function: str
    how: str
    """`same`, `other constants` (its code is the same), or `other code` (its helpers' included)."""
    mine: str
    """First line of its docstring; empty: it has none."""
    theirs: str


@dataclass(frozen=True, slots=True)
class ConstantDifference:
    """A constant whose value differs, or that only one policy has."""

    name: str
    mine: str
    """As it is written; empty: there is none."""
    theirs: str
    meaning: str
    """From its comment."""


@dataclass(frozen=True, slots=True)
class CodeDifference:
    """All that differs."""

    summary: str
    """First line of the policy's docstring."""
    functions: tuple[FunctionDifference, ...]
    constants: tuple[ConstantDifference, ...]


def code_difference(mine: PolicySource, theirs: PolicySource) -> CodeDifference:
    """What `mine` does differently from `theirs`. Both keep the rules of the policy API."""
    a, b = _apart(mine.source), _apart(theirs.source)
    functions = tuple(_function(name, a, b) for name in FUNCTIONS)
    names = dict.fromkeys([*a.constants, *b.constants])
    constants = tuple(
        ConstantDifference(
            name,
            _value(a.constants.get(name, "")),
            _value(b.constants.get(name, "")),
            _meaning(a.constants.get(name) or b.constants.get(name, "")),
        )
        for name in names
        if _value(a.constants.get(name, "")) != _value(b.constants.get(name, ""))
    )
    return CodeDifference(summary_of(mine.source), functions, constants)


def in_words(difference: CodeDifference, mine: str, theirs: str) -> list[str]:
    """The difference, a few lines of plain words."""
    lines = [f"{mine}: {difference.summary}"] if difference.summary else []
    same = [PURPOSE[f.function] for f in difference.functions if f.how == "same"]
    for f in difference.functions:
        if f.how == "same":
            continue
        told = f.mine or "(no docstring)"
        if f.how == "other constants":
            lines.append(
                f"- {PURPOSE[f.function]} ({f.function}): the same code with other constants: {told}"
            )
        elif f.mine == f.theirs:
            lines.append(f"- {PURPOSE[f.function]} ({f.function}): other code for the same end: {told}")
        else:
            lines.append(f"- {PURPOSE[f.function]} ({f.function}): {told}")
            lines.append(f"    where {theirs} has: {f.theirs or '(no docstring)'}")
    if same:
        lines.append(f"- as in {theirs}: {', '.join(same)}")
    for c in difference.constants:
        meaning = f"  ({c.meaning})" if c.meaning else ""
        if c.mine and c.theirs:
            lines.append(f"- {c.name} = {c.mine}, not {c.theirs}{meaning}")
        elif c.mine:
            lines.append(f"- {c.name} = {c.mine}, new{meaning}")
    gone = [c.name for c in difference.constants if not c.mine]
    if gone:
        lines.append(f"- no longer there: {', '.join(gone)}")
    return lines


def _apart(source: str) -> Parts:
    try:
        return take_apart(source)
    except ValueError:  # e.g. an assignment to several names: only the functions are told apart then
        found = {
            node.name: ast.get_source_segment(source, node) or ""
            for node in ast.parse(source).body
            if isinstance(node, ast.FunctionDef)
        }
        return Parts("", frozenset(), {}, {}, found)


def _function(name: str, a: Parts, b: Parts) -> FunctionDifference:
    mine, theirs = a.functions.get(name, ""), b.functions.get(name, "")
    if _used(a, a.functions, name) != _used(b, b.functions, name):
        how = "other code"
    elif {n: _value(t) for n, t in _used_constants(a, name).items()} != {
        n: _value(t) for n, t in _used_constants(b, name).items()
    }:
        how = "other constants"
    else:
        how = "same"
    return FunctionDifference(name, how, _docstring(mine), _docstring(theirs))


def _used(parts: Parts, pieces: Mapping[str, str], name: str) -> dict[str, str]:
    """The function and the helpers that it needs, without docstrings, comments and layout."""
    others = frozenset(FUNCTIONS) - {name}
    needed = parts.needed_by([name], stop=others)
    return {n: _bare(text) for n, text in pieces.items() if n in needed}


def _used_constants(parts: Parts, name: str) -> dict[str, str]:
    needed = parts.needed_by([name], stop=frozenset(FUNCTIONS) - {name})
    return {n: text for n, text in parts.constants.items() if n in needed}


def _bare(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def _docstring(text: str) -> str:
    """The first sentence or line of a function's docstring, in one line."""
    if not text:
        return ""
    node = ast.parse(text).body[0]
    told = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
    return " ".join((told or "").split("\n\n")[0].split())


def _value(text: str) -> str:
    """The right side of an assignment, as written."""
    if not text:
        return ""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            return ast.unparse(node.value)
    return ""


def _meaning(text: str) -> str:
    """What the comment of a constant says, apart from its range."""
    found = _COMMENT.search(text)
    return found[1].strip() if found else ""
