"""Edits that put one thing into the place of another of the same kind: an estimate, a load, a base layout, or
a feature of a replica or request that has the same unit.
"""

from __future__ import annotations

import ast
import random
from dataclasses import dataclass

import libcst as cst

from strategy.evolve.parts import LINE_LENGTH, Parts
from strategy.evolve.static import PARAMETERS
from strategy.evolve.syntax import parse
from strategy.evolve.synthesise.edited import Edited, amended, with_function


@dataclass(frozen=True, slots=True)
class Exchange:
    """Two expressions that mean the same kind of thing."""

    old: str
    new: str
    need: str
    what: str
    why: str


_MAKESPAN = "An answer on a slow replica ends last: what counts is when the last request is done."
_STEADY = "The steadier estimate follows throughput and is not ruled by the longest answer."
_FORECAST = "Weights take long to load: the layout should fit the window that comes."
_SEEN = "A forecast from a noisy history may be worse than what was just seen."
ESTIMATES = (
    Exchange(
        "plan_serving_s", "plan_makespan_s", "plan_makespan_s", "the end of the last request", _MAKESPAN
    ),
    Exchange(
        "plan_makespan_s",
        "plan_serving_s",
        "plan_serving_s",
        "the time at which all are done together",
        _STEADY,
    ),
    Exchange("loads(obs)", "expected_loads(obs)", "expected_loads", "the forecast load", _FORECAST),
    Exchange("expected_loads(obs)", "loads(obs)", "loads", "the load just seen", _SEEN),
    Exchange(
        "keep(obs), MAX_NUM_SEQS",
        "(), MAX_NUM_SEQS",
        "fill",
        "a fresh layout",
        "What serves may hold devices that could do more for the present load.",
    ),
    Exchange(
        "(), MAX_NUM_SEQS",
        "keep(obs), MAX_NUM_SEQS",
        "keep",
        "a layout that keeps what serves",
        "No replica is stopped for the sake of a slightly better layout.",
    ),
    Exchange(
        "backlog_s(r) + work_s(request, r)",
        "backlog_s(r) + 2.0 * work_s(request, r)",
        "work_s",
        "a heavier count of the request's own work",
        "The request's own work is certain, the backlog may have shrunk by the time it is served.",
    ),
)

TWINS = {
    "waiting_tokens": ("outstanding_tokens", "kv_tokens"),
    "outstanding_tokens": ("waiting_tokens", "kv_tokens"),
    "kv_tokens": ("waiting_tokens", "outstanding_tokens"),
    "running": ("waiting",),
    "waiting": ("running",),
    "input_tokens": ("predicted_output_tokens",),
    "predicted_output_tokens": ("input_tokens",),
    "ttft_p99_s": ("ttft_p50_s", "tpot_p99_s"),
    "input_tokens_mean": ("input_tokens_p90", "output_tokens_mean"),
    "output_tokens_mean": ("output_tokens_p90", "input_tokens_mean"),
}
"""Features -> others with the same unit."""


def replace_estimate(parts: Parts, rng: random.Random) -> Edited | None:
    """One estimate, load or base layout in the place of another, in one function."""
    places = [
        (name, exchange)
        for name in parts.functions
        for exchange in ESTIMATES
        if _holds(parts.functions[name], exchange.old)
    ]
    if not places:
        return None
    name, exchange = rng.choice(places)
    text = parts.functions[name]
    changed = _exchanged(text, exchange)
    if changed is None:
        return None
    edited = with_function(parts, name, amended(changed, f"by {exchange.what}"), {}, (exchange.need,))
    return Edited(edited, f"{name.strip('_')}: by {exchange.what}", exchange.why)


def replace_feature(parts: Parts, rng: random.Random) -> Edited | None:
    """One feature in a function in the place of another of the same unit."""
    places = []
    for name, text in parts.functions.items():
        if name.startswith("_") and not any(used in text for used in ("replica", "request", "r.")):
            continue
        for node in ast.walk(parse(text)):
            if isinstance(node, ast.Attribute) and node.attr in TWINS and _is_view(node.value):
                places.append((name, node))
    if not places:
        return None
    name, node = rng.choice(places)
    new = rng.choice(TWINS[node.attr])
    owner = node.value.id if isinstance(node.value, ast.Name) else ""
    lines = parts.functions[name].splitlines()
    line = lines[node.lineno - 1]
    end = node.end_col_offset or 0
    lines[node.lineno - 1] = line[: end - len(node.attr)] + new + line[end:]
    if not _keeps_layout(lines, node.lineno - 1, len(new) - len(node.attr)):
        return None
    remark = f"{owner}.{new} in place of {owner}.{node.attr}"
    edited = with_function(parts, name, amended("\n".join(lines), remark))
    function = name if name in PARAMETERS else name.strip("_")
    return Edited(
        edited,
        f"{function}: {remark}",
        "Both have the same unit; which of them tells more is an open question.",
    )


def _is_view(node: ast.expr) -> bool:
    """Whether an expression is a request, a replica or a demand, as policies call them."""
    return isinstance(node, ast.Name) and node.id in ("request", "replica", "r", "d", "demand")


def _holds(text: str, expression: str) -> bool:
    if "(" in expression:
        return _at(text, expression) >= 0
    return any(isinstance(n, ast.Name) and n.id == expression for n in ast.walk(parse(text)))


def _at(text: str, expression: str) -> int:
    """Where an expression begins that is not the end of a longer name; -1: nowhere."""
    start = text.find(expression)
    while start > 0 and (text[start - 1].isalnum() or text[start - 1] in "_."):
        start = text.find(expression, start + 1)
    return start


def _exchanged(text: str, exchange: Exchange) -> str | None:
    """The function with every use exchanged, where the layout of its lines allows it."""
    before = text.splitlines()
    if "(" not in exchange.old:
        after = cst.parse_module(text).visit(_Renamed(exchange.old, exchange.new)).code.splitlines()
    else:
        at = _at(text, exchange.old)
        after = (text[:at] + exchange.new + text[at + len(exchange.old) :]).splitlines()
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new and not _keeps_layout(after, number, len(new) - len(old)):
            return None
    return "\n".join(after)


def _keeps_layout(lines: list[str], number: int, growth: int) -> bool:
    """Whether a formatter would leave a changed line where it is: it still fits, and, when it has become shorter,
    its statement was on one line before.
    """
    line = lines[number]
    if len(line) > LINE_LENGTH:
        return False
    whole = line.startswith("    ") and _closed(line)
    return whole or growth >= 0


def _closed(line: str) -> bool:
    """Whether a line opens no bracket that it does not close, and the other way round."""
    depth = 0
    for letter in line:
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0:
            return False
    return depth == 0 and not line.lstrip().startswith(("+", "-", "*", "/", "and ", "or ", "for "))


class _Renamed(cst.CSTTransformer):
    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.Name:  # noqa: N802
        return (
            updated_node.with_changes(value=self._new) if original_node.value == self._old else updated_node
        )
