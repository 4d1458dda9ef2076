"""Edits of the trigger: early answers put in or taken out; comparisons and their operands changed.

Conditions compare what has the same unit, and each new threshold becomes a constant with a range, for CMA-ES
to tune.
"""

from __future__ import annotations

import ast
import random
from dataclasses import dataclass

import libcst as cst

from strategy.evolve.parts import LINE_LENGTH, Parts
from strategy.evolve.synthesise.constants import find_constants
from strategy.evolve.synthesise.edited import (
    Edited,
    amended,
    function_of,
    parsed,
    rewritten,
    with_function,
)
from strategy.evolve.synthesise.features import FEATURES, Feature, Unit, unit_of
from strategy.evolve.synthesise.layout import LayoutError, flat

_TRIGGER = "should_replan"


@dataclass(frozen=True, slots=True)
class Condition:
    """An early return for the trigger."""

    test: str
    answer: bool
    constants: tuple[tuple[str, str], ...]
    what: str
    why: str
    needs: tuple[str, ...] = ()


_REST = ("MIN_REST_WINDOWS", "MIN_REST_WINDOWS = 2  # 1 to 12: windows of rest after a change of layout")
KNOWN = (
    Condition(
        "obs.ticks_since_replan < MIN_REST_WINDOWS and not obs.changes",
        False,
        (_REST,),
        "rest after a change of layout",
        "A change shows its effect only after replicas have drained and loaded.",
    ),
    Condition(
        "obs.pain > PAIN_TO_REPLAN and obs.ticks_since_replan >= MIN_REST_WINDOWS",
        True,
        (_REST, ("PAIN_TO_REPLAN", "PAIN_TO_REPLAN = 0.5  # 0.05 to 0.95: pain above which to replan")),
        "replan on pain",
        "When objectives are missed, the layout is the first thing to question.",
    ),
    Condition(
        "obs.last_serving_s < SHORT_WINDOW_S and not obs.changes",
        False,
        (
            (
                "SHORT_WINDOW_S",
                "SHORT_WINDOW_S = 30.0  # 1 to 600: windows served faster than this are left alone",
            ),
        ),
        "leave short windows alone",
        "What is served quickly anyway cannot earn back the loading of weights.",
    ),
    Condition(
        "obs.last_reconfiguration_s > STALL_SHARE * obs.last_serving_s and not obs.changes",
        False,
        (
            (
                "STALL_SHARE",
                "STALL_SHARE = 0.5  # 0.05 to 4: last stall, as a share of serving, above which to hold still",
            ),
        ),
        "hold still after a costly change",
        "A stall that was long in comparison to the serving time says that changes are dear now.",
    ),
    Condition(
        'memo.setdefault("adopted", obs.tick) == obs.tick',
        True,
        (),
        "replan at take-over",
        "The layout found at take-over was made by another planner, for another idea.",
    ),
)
"""Early answers that are known to help somewhere."""


def insert_condition(parts: Parts, rng: random.Random) -> Edited | None:
    """An early return at the top of the trigger: a known one, or one made of features."""
    condition = rng.choice(KNOWN) if rng.random() < 0.5 else _made(rng)
    text = parts.functions[_TRIGGER]
    if condition.test in " ".join(text.split()):
        return None
    function = function_of(text)
    has_docstring = ast.get_docstring(function) is not None and len(function.body) > 1
    first = function.body[1] if has_docstring else function.body[0]
    lines = text.splitlines()
    new = [f"    if {condition.test}:  # {condition.what}", f"        return {condition.answer}"]
    if len(new[0]) > LINE_LENGTH:
        new = [f"    # {condition.what}", f"    if {condition.test}:", new[1]]
    if max(map(len, new)) > LINE_LENGTH:
        return None
    lines[first.lineno - 1 : first.lineno - 1] = new
    edited = with_function(parts, _TRIGGER, "\n".join(lines), dict(condition.constants), condition.needs)
    return Edited(edited, f"trigger: {condition.what}", condition.why)


def _made(rng: random.Random) -> Condition:
    """A feature against a new threshold, or against a multiple of another one of its unit."""
    feature = rng.choice([f for f in FEATURES if f.source != "obs.window_s"])
    others = [f for f in FEATURES if f.unit is feature.unit and f is not feature]
    force = rng.random() < 0.5
    above = rng.random() < 0.5
    if others and feature.unit in (Unit.SECONDS, Unit.REQUESTS, Unit.TOKENS) and rng.random() < 0.5:
        other = rng.choice(others)
        constant = f"{feature.constant}_PER_{other.constant}".replace("_S_PER", "_PER")
        bound = f"{constant} * {other.source}"
        definition = f"{constant} = 1.0  # 0.05 to 20: {feature.words}, against {other.words}"
        limit, needs = f"a multiple of {other.words}", (*feature.needs, *other.needs)
    else:
        constant = f"{'MAX' if above else 'MIN'}_{feature.constant}"
        bound, needs = constant, feature.needs
        side = "above" if above else "below"
        definition = f"{constant} = {feature.default}  # {feature.low_high}: {feature.words} {side} which "
        definition += "to replan" if force else "to hold still"
        limit = "a limit"
    if len(definition) > LINE_LENGTH:
        definition = f"{constant} = {definition.split(' = ')[1].split(':')[0]}: threshold of the trigger"
    test = f"{feature.source} {'>' if above else '<'} {bound}"
    constants: tuple[tuple[str, str], ...] = ((constant, definition),)
    if force:
        test += " and obs.ticks_since_replan >= MIN_REST_WINDOWS"
        constants = (*constants, _REST)
    else:
        test += " and not obs.changes"
    what = f"{'replan' if force else 'hold still'} when {feature.words} is {'above' if above else 'below'} {limit}"
    return Condition(test, force, constants, what, _why(feature, force=force), needs)


def _why(feature: Feature, *, force: bool) -> str:
    if force:
        return f"What shows in {feature.words} may be cured by another layout."
    return f"As {feature.words} stands, a change may not earn back its stall."


def remove_condition(parts: Parts, rng: random.Random) -> Edited | None:
    """One early return less in the trigger. (Elsewhere they guard against what cannot be computed.)"""
    text = parts.functions[_TRIGGER]
    found = [
        node
        for node in function_of(text).body[:-1]
        if isinstance(node, ast.If) and not node.orelse and isinstance(node.body[-1], ast.Return)
    ]
    if not found:
        return None
    node = rng.choice(found)
    lines = text.splitlines()
    del lines[node.lineno - 1 : node.end_lineno]
    before = node.lineno - 2
    if 0 <= before < len(lines) and lines[before].lstrip().startswith("# "):
        del lines[before]
    what = f"trigger: no early answer any more when {ast.unparse(node.test)}"
    edited = with_function(parts, _TRIGGER, "\n".join(lines))
    return Edited(edited, what, "One rule less: it is not known to help.")


def change_condition(parts: Parts, rng: random.Random) -> Edited | None:
    """A condition of the trigger negated, relaxed (a part of an `and` dropped) or tightened (of an `or`)."""
    text = parts.functions[_TRIGGER]
    places = _places(text)
    rng.shuffle(places)
    for node, head, test, tail in places:
        tree = parsed(text, test)
        changes = _Changes(rng)
        changed = tree.visit(changes)
        if not isinstance(changed, cst.BaseExpression) or not changes.remark:
            continue
        try:
            new = rewritten(text, node, head, changed, tail)
        except LayoutError:
            continue
        edited = with_function(parts, _TRIGGER, amended(new, changes.remark))
        return Edited(edited, f"trigger: {changes.remark}", changes.why)
    return None


def swap_threshold(parts: Parts, rng: random.Random) -> Edited | None:
    """Another constant of the same unit in a comparison of the trigger."""
    text = parts.functions[_TRIGGER]
    known = [n for definition in parts.constants.values() for n in find_constants(definition)]
    used = {n.id for n in ast.walk(function_of(text)) if isinstance(n, ast.Name)}
    pairs = [
        (old.name, new.name)
        for old in known
        for new in known
        if old.name in used
        and old.name != new.name
        and unit_of(old.name) is not None
        and unit_of(old.name) is unit_of(new.name)
        and old.low <= new.value <= old.high
    ]
    if not pairs:
        return None
    old_name, new_name = rng.choice(pairs)
    for node, head, test, tail in _places(text):
        if any(isinstance(n, ast.Name) and n.id == old_name for n in ast.walk(test)):
            changed = parsed(text, test).visit(_Renamed(old_name, new_name))
            try:
                new = rewritten(text, node, head, changed, tail)  # type: ignore[arg-type]
            except LayoutError:
                return None
            remark = f"{new_name} decides in place of {old_name}"
            edited = with_function(parts, _TRIGGER, amended(new, remark))
            return Edited(edited, f"trigger: {remark}", "One threshold for both: fewer knobs to set wrongly.")
    return None


def _places(text: str) -> list[tuple[ast.stmt, str, ast.expr, str]]:
    """(statement, what stands before the condition, the condition, what stands after it) in a trigger."""
    found: list[tuple[ast.stmt, str, ast.expr, str]] = []
    lines = text.splitlines()
    for node in ast.walk(function_of(text)):
        if isinstance(node, ast.If):
            written = " ".join(lines[node.lineno - 1 : node.test.end_lineno])
            if "#" not in written and written.rstrip().endswith(":") and "elif" not in written:
                found.append((node, "if ", node.test, ":"))
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.BoolOp | ast.Compare):
            found.append((node, "return ", node.value, ""))
    return found


_FLIPPED: dict[type[cst.BaseCompOp], type[cst.BaseCompOp]] = {
    cst.GreaterThan: cst.LessThanEqual,
    cst.LessThan: cst.GreaterThanEqual,
    cst.GreaterThanEqual: cst.LessThan,
    cst.LessThanEqual: cst.GreaterThan,
}


class _Changes(cst.CSTTransformer):
    """One change to a condition, the first that the generator agrees to."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.remark = ""
        self.why = ""

    def leave_BooleanOperation(  # noqa: N802  libcst's naming
        self, original_node: cst.BooleanOperation, updated_node: cst.BooleanOperation
    ) -> cst.BaseExpression:
        if self.remark or self._rng.random() < 0.4:
            return updated_node
        gone, kept = original_node.left, original_node.right
        if isinstance(gone, cst.BooleanOperation) or self._rng.random() < 0.5:
            gone, kept = kept, gone
        if _guards(gone):
            return updated_node
        relaxed = isinstance(updated_node.operator, cst.And)
        self.remark = f"{'also without' if relaxed else 'no longer on'} {flat(gone)}"
        self.why = "One condition less: it may have held back, or set off, more than it should."
        return kept

    def leave_Comparison(  # noqa: N802
        self, original_node: cst.Comparison, updated_node: cst.Comparison
    ) -> cst.BaseExpression:
        if self.remark or self._rng.random() < 0.6 or len(updated_node.comparisons) != 1:
            return updated_node
        target = updated_node.comparisons[0]
        flipped = _FLIPPED.get(type(target.operator))
        if flipped is None or _guards(original_node):
            return updated_node
        self.remark = f"{flat(updated_node)} is turned round"
        self.why = "The opposite of a rule that is not known to help may help."
        return updated_node.with_changes(comparisons=[target.with_changes(operator=flipped())])


class _Renamed(cst.CSTTransformer):
    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.Name:  # noqa: N802
        return (
            updated_node.with_changes(value=self._new) if original_node.value == self._old else updated_node
        )


def _guards(node: cst.BaseExpression) -> bool:
    """Whether a condition is about lost replicas: without it a policy would not repair its layout."""
    text = flat(node)
    return any(word in text for word in ("kept", "keep(", "lost", "differs("))
