"""Writes a changed statement the way the formatter of this project would: on one line when it fits, else split
at the operators that bind least, or behind brackets.

Only what edits produce is covered; what is not is refused, and the edit does not apply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import libcst as cst

from strategy.evolve.parts import LINE_LENGTH

_STEP = "    "
_SPACE = re.compile(r"\s+")


class LayoutError(ValueError):
    """An expression that cannot be laid out within the line length."""


def flat(node: cst.CSTNode) -> str:
    """An expression on one line, however long.

    Raises:
        LayoutError: there is a comment in it, which would be lost.
    """
    text = cst.Module([]).code_for_node(node)
    if "#" in text:
        raise LayoutError(f"a comment stands in {text[:60]!r}")
    text = _SPACE.sub(" ", text)
    text = re.sub(r",? ?([)\]}])", lambda match: match[1], text)
    return re.sub(r"([(\[{]) ", r"\1", text)


def statement(head: str, value: cst.BaseExpression, tail: str, indent: str) -> list[str]:
    """`head value tail` as lines, e.g. head `return `, or head `if ` and tail `:`.

    Raises:
        LayoutError: no layout fits.
    """
    bare = _without_outer_brackets(value)
    line = indent + head + flat(bare) + tail
    if len(line) <= LINE_LENGTH:
        return [line]
    bracketed = _behind_brackets(bare, head, tail, indent)
    if bracketed is not None:
        return bracketed
    return [indent + head + "(", *expression(bare, indent + _STEP), indent + ")" + tail]


def expression(node: cst.BaseExpression, indent: str, before: str = "", after: str = "") -> list[str]:
    """An expression within brackets, split at its loosest operators where it does not fit on a line."""
    line = indent + before + flat(node) + after
    if len(line) <= LINE_LENGTH:
        return [line]
    pieces = _pieces(node)
    if len(pieces) == 1:
        split = _behind_brackets(node, before, after, indent)
        if split is None:
            raise LayoutError(f"too long: {line[:80]!r}")
        return split
    lines: list[str] = []
    for index, (operator, piece) in enumerate(pieces):
        first = before if index == 0 else f"{operator} "
        last = after if index == len(pieces) - 1 else ""
        lines += expression(piece, indent, first, last)
    return lines


def _behind_brackets(node: cst.BaseExpression, before: str, after: str, indent: str) -> list[str] | None:
    """A call, list or comprehension with its inside on lines of its own; None: it is nothing of the kind."""
    if node.lpar:
        inner = _without_outer_brackets(node)
        return [indent + before + "(", *expression(inner, indent + _STEP), indent + ")" + after]
    if isinstance(node, cst.ListComp):
        loop = flat(node.for_in).strip()
        if len(indent + _STEP + loop) > LINE_LENGTH:
            return None
        inside = [*expression(_without_outer_brackets(node.elt), indent + _STEP), indent + _STEP + loop]
        return [indent + before + "[", *inside, indent + "]" + after]
    if isinstance(node, cst.Call) and node.args:
        return _items((flat(node.func) + "(", ")"), [flat(a) for a in node.args], before, after, indent)
    if isinstance(node, cst.List) and node.elements:
        return _items(("[", "]"), [flat(e) for e in node.elements], before, after, indent)
    return None


def _items(
    brackets: tuple[str, str], items: Sequence[str], before: str, after: str, indent: str
) -> list[str] | None:
    items = [item.rstrip(", ") for item in items]
    inside = [indent + _STEP + ", ".join(items)]
    if len(inside[0]) > LINE_LENGTH:
        inside = [f"{indent}{_STEP}{item}," for item in items]
    lines = [indent + before + brackets[0], *inside, indent + brackets[1] + after]
    return lines if all(len(line) <= LINE_LENGTH for line in lines) else None


def _pieces(node: cst.BaseExpression) -> list[tuple[str, cst.BaseExpression]]:
    """(operator before it, operand) of a chain of operators that bind equally."""
    if node.lpar:
        return [("", node)]
    if isinstance(node, cst.BooleanOperation):
        return _chain(node, type(node.operator).__name__)
    if isinstance(node, cst.BinaryOperation) and _level(node.operator) is not None:
        return _chain(node, _level(node.operator))
    return [("", node)]


def _chain(node: cst.BaseExpression, level: str | None) -> list[tuple[str, cst.BaseExpression]]:
    if isinstance(node, cst.BooleanOperation) and not node.lpar:
        if type(node.operator).__name__ == level:
            word = "and" if isinstance(node.operator, cst.And) else "or"
            return [*_chain(node.left, level), (word, node.right)]
    elif isinstance(node, cst.BinaryOperation) and not node.lpar and _level(node.operator) == level:
        return [*_chain(node.left, level), (flat(node.operator).strip(), node.right)]
    return [("", node)]


def _level(operator: cst.BaseBinaryOp) -> str | None:
    if isinstance(operator, cst.Add | cst.Subtract):
        return "sum"
    if isinstance(operator, cst.Multiply | cst.Divide | cst.FloorDivide | cst.Modulo):
        return "product"
    return None


def _without_outer_brackets(node: cst.BaseExpression) -> cst.BaseExpression:
    """The expression without redundant brackets around the whole of it."""
    if node.lpar and not isinstance(node, cst.GeneratorExp | cst.Tuple | cst.NamedExpr | cst.Yield):
        return node.with_changes(lpar=[], rpar=[])
    return node
