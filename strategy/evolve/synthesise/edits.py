"""Small edits inside a function: terms put in or taken out, estimates and features replaced by others of the
same unit; and the register of all edits.

Each edit is a function of the parts of a policy and a random number generator; None: it does not apply.
"""

from __future__ import annotations

import ast
import random
from dataclasses import dataclass, replace

import libcst as cst

from strategy.evolve.parts import LINE_LENGTH, Parts
from strategy.evolve.synthesise.conditions import (
    change_condition,
    insert_condition,
    remove_condition,
    swap_threshold,
)
from strategy.evolve.synthesise.edited import Edit, Edited, amended, function_of
from strategy.evolve.synthesise.layout import LayoutError, expression
from strategy.evolve.synthesise.replacing import replace_estimate, replace_feature


@dataclass(frozen=True, slots=True)
class Term:
    """A weighted summand. `{r}` stands for the replica."""

    feature: str
    constant: str
    default: str
    low_high: str
    means: str
    why: str


ORDER_TERMS = (
    Term(
        "request.predicted_output_tokens",
        "OUTPUT_ORDER_WEIGHT",
        "0.01",
        "0.0001 to 10",
        "seconds that a predicted output token counts as",
        "Shorter answers first lower the mean wait.",
    ),
    Term(
        "request.input_tokens",
        "INPUT_ORDER_WEIGHT",
        "0.001",
        "0.00001 to 1",
        "seconds that a prompt token counts as",
        "Short prompts first lower the time to the first token.",
    ),
    Term(
        "-request.predicted_output_tokens",
        "LONG_FIRST_WEIGHT",
        "0.01",
        "0.0001 to 10",
        "seconds of head start for a predicted output token",
        "Long answers that start late are what the whole window waits for.",
    ),
    Term(
        "-float(request.retries)",
        "RETRY_WEIGHT",
        "10.0",
        "0.1 to 600",
        "seconds of head start for each lost replica",
        "Who lost its replica has waited twice.",
    ),
)
ROUTE_TERMS = (
    Term(
        "{r}.kv_tokens / max(1, {r}.kv_capacity_tokens)",
        "KV_USE_COST_S",
        "1.0",
        "0.01 to 60",
        "seconds that a full KV cache counts as",
        "A replica short of KV cache preempts, and what is preempted is computed twice.",
    ),
    Term(
        "({r}.running + {r}.waiting) / max(1, {r}.max_num_seqs)",
        "BATCH_USE_COST_S",
        "0.5",
        "0.01 to 60",
        "seconds that a full batch counts as",
        "The fuller the batch, the slower each of its requests.",
    ),
    Term(
        "{r}.ready_in_s",
        "START_COST",
        "0.5",
        "0.02 to 5",
        "extra cost of a second that a replica still loads",
        "An estimate of when a replica will be ready is often too early.",
    ),
    Term(
        "max(0.0, 1.0 - {r}.speed)",
        "STRAGGLER_COST_S",
        "5.0",
        "0.1 to 120",
        "seconds that a replica at standstill counts as",
        "A straggler that slowed down once often slows down further.",
    ),
    Term(
        "request.predicted_output_tokens * {r}.decode_step_s",
        "OWN_DECODE_WEIGHT",
        "0.3",
        "0.02 to 5",
        "how much the request's own decode time counts",
        "A long answer on a slow device ends last, however short the queue.",
    ),
)


def add_term(parts: Parts, rng: random.Random) -> Edited | None:
    """One more weighted summand in the queue order or in the routing costs."""
    function = rng.choice(["priority", "route"])
    found = _sum_in(parts, function)
    if found is None:
        return None
    terms = ORDER_TERMS if function == "priority" else ROUTE_TERMS
    fresh = [t for t in terms if t.constant not in parts.constants]
    if not fresh:
        return None
    term = rng.choice(fresh)
    feature = term.feature.replace("{r}", found.replica)
    sign = "-" if feature.startswith("-") else "+"
    try:
        text = found.with_terms([*found.terms, (sign, f"{term.constant} * {feature.lstrip('-')}")])
    except LayoutError:
        return None
    text = amended(text, f"{'plus' if sign == '+' else 'less'} {term.means}")
    definition = f"{term.constant} = {term.default}  # {term.low_high}: {term.means}"
    return Edited(
        replace(
            parts,
            functions={**parts.functions, function: text},
            constants={**parts.constants, term.constant: definition},
        ),
        f"{function}: a term for {term.means}",
        term.why,
    )


def remove_term(parts: Parts, rng: random.Random) -> Edited | None:
    """One summand less."""
    function = rng.choice(["priority", "route"])
    found = _sum_in(parts, function)
    if found is None or len(found.terms) < 2:
        return None
    gone = rng.randrange(len(found.terms))
    left = [term for index, term in enumerate(found.terms) if index != gone]
    try:
        text = amended(found.with_terms(left), f"without {found.terms[gone][1]}")
    except LayoutError:
        return None
    what = f"{function}: without the term {found.terms[gone][1]}"
    return Edited(
        replace(parts, functions={**parts.functions, function: text}),
        what,
        "One term less: it is not known to help.",
    )


EDITS: dict[str, Edit] = {
    "insert-condition": insert_condition,
    "remove-condition": remove_condition,
    "change-condition": change_condition,
    "swap-threshold": swap_threshold,
    "add-term": add_term,
    "remove-term": remove_term,
    "replace-estimate": replace_estimate,
    "replace-feature": replace_feature,
}


@dataclass(frozen=True, slots=True)
class _Sum:
    """A sum in a function: what `priority` returns, or the elements of `costs` in `route`."""

    text: str
    statement: ast.stmt
    terms: tuple[tuple[str, str], ...]
    """(sign, source) of each summand."""
    tail: str
    """`for ... in ...` of the comprehension; empty in a return."""
    replica: str
    """Name of the replica there."""

    def with_terms(self, terms: list[tuple[str, str]]) -> str:
        """The function with these summands instead. Raises LayoutError when they cannot be laid out."""
        indent = " " * self.statement.col_offset
        first = ("-" if terms[0][0] == "-" else "") + terms[0][1]
        rest = [f"{sign} {term}" for sign, term in terms[1:]]
        one_line = " ".join([first, *rest])
        start, end = ("costs = [", "]") if self.tail else ("return (", ")")
        short = f"costs = [{one_line} {self.tail}]" if self.tail else f"return {one_line}"
        if len(indent + short) <= LINE_LENGTH:
            new = [indent + short]
        else:
            inner = expression(cst.parse_expression(one_line), indent + "    ")
            inner += [indent + "    " + self.tail] if self.tail else []
            new = [indent + start, *inner, indent + end]
        lines = self.text.splitlines()
        lines[self.statement.lineno - 1 : self.statement.end_lineno] = new
        return "\n".join(lines)


def _sum_in(parts: Parts, function: str) -> _Sum | None:
    text = parts.functions[function]
    for node in function_of(text).body:
        if function == "priority" and isinstance(node, ast.Return) and node.value is not None:
            return _made_sum(text, node, node.value, "", "replica")
        if function == "route" and isinstance(node, ast.Assign) and isinstance(node.value, ast.ListComp):
            target, loop = node.targets[0], node.value.generators[0]
            if not isinstance(target, ast.Name) or target.id != "costs":
                continue
            replica = loop.target.elts[-1] if isinstance(loop.target, ast.Tuple) else loop.target
            if len(node.value.generators) == 1 and not loop.ifs and isinstance(replica, ast.Name):
                tail = f"for {ast.unparse(loop.target).strip('()')} in {ast.unparse(loop.iter)}"
                return _made_sum(text, node, node.value.elt, tail, replica.id)
    return None


def _made_sum(text: str, statement: ast.stmt, value: ast.expr, tail: str, replica: str) -> _Sum | None:
    terms = _summands(text, value, "+")
    source = text.splitlines()[statement.lineno - 1 : statement.end_lineno]
    if any("#" in line for line in source):
        return None  # a comment would be lost
    return _Sum(text, statement, tuple(terms), tail, replica)


def _summands(text: str, node: ast.expr, sign: str) -> list[tuple[str, str]]:
    """The terms of a sum, from left to right; what is in brackets on the right of an operator stays whole."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        operator = "+" if isinstance(node.op, ast.Add) else "-"
        return [*_summands(text, node.left, sign), (operator, _segment(text, node.right))]
    return [(sign, _segment(text, node))]


def _segment(text: str, node: ast.expr) -> str:
    source = " ".join((ast.get_source_segment(text, node) or ast.unparse(node)).split())
    source = source.replace("( ", "(").replace(" )", ")").replace("[ ", "[").replace(" ]", "]")
    loose = isinstance(node, ast.IfExp | ast.Compare | ast.BoolOp | ast.Lambda | ast.NamedExpr)
    if loose or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub)):
        return f"({source})"
    return source
