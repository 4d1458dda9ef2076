"""Small edits inside a function: conditions and terms over what a policy sees, put in or taken out.

Each edit is a function of the parts of a policy and a random number generator; None: it does not apply.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from strategy.evolve.parts import LINE_LENGTH, Parts


@dataclass(frozen=True, slots=True)
class Edited:
    """What an edit made of a policy, and how to say it."""

    parts: Parts
    what: str
    why: str


Edit = Callable[[Parts, random.Random], Edited | None]


@dataclass(frozen=True, slots=True)
class Condition:
    """An early return for the trigger."""

    test: str
    answer: bool
    constants: tuple[tuple[str, str], ...]
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Term:
    """A weighted summand. `{r}` stands for the replica."""

    feature: str
    constant: str
    default: str
    low_high: str
    means: str
    why: str


_REST = ("MIN_REST_WINDOWS", "MIN_REST_WINDOWS = 2  # 1 to 12: windows of rest after a change of layout")
CONDITIONS = (
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
)

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
        "seconds that a replica at standstill counts as, against one at full speed",
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


def insert_condition(parts: Parts, rng: random.Random) -> Edited | None:
    """An early return at the top of `should_replan`."""
    text = parts.functions["should_replan"]
    fresh = [c for c in CONDITIONS if f"if {c.test}:" not in text]
    if not fresh:
        return None
    condition = rng.choice(fresh)
    function = _function(text)
    first = function.body[1] if _has_docstring(function) and len(function.body) > 1 else function.body[0]
    lines = text.splitlines()
    at = first.lineno - 1
    lines[at:at] = [f"    if {condition.test}:  # {condition.what}", f"        return {condition.answer}"]
    constants = dict(parts.constants)
    for name, definition in condition.constants:
        constants.setdefault(name, definition)
    functions = {**parts.functions, "should_replan": "\n".join(lines)}
    return Edited(
        replace(parts, functions=functions, constants=constants), f"trigger: {condition.what}", condition.why
    )


def remove_condition(parts: Parts, rng: random.Random) -> Edited | None:
    """One early return less in the trigger. (Elsewhere they guard against what cannot be computed.)"""
    text = parts.functions["should_replan"]
    found = [
        node
        for node in _function(text).body[:-1]
        if isinstance(node, ast.If) and not node.orelse and isinstance(node.body[-1], ast.Return)
    ]
    if not found:
        return None
    node = rng.choice(found)
    lines = text.splitlines()
    del lines[node.lineno - 1 : node.end_lineno]
    functions = {**parts.functions, "should_replan": "\n".join(lines)}
    what = f"trigger: no early answer any more when {ast.unparse(node.test)}"
    return Edited(replace(parts, functions=functions), what, "One rule less: it is not known to help.")


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
    text = found.with_terms([*found.terms, (sign, f"{term.constant} * {feature.lstrip('-')}")])
    text = _amended(text, f"{'plus' if sign == '+' else 'less'} {term.means}")
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
    text = _amended(found.with_terms(left), f"without {found.terms[gone][1]}")
    what = f"{function}: without the term {found.terms[gone][1]}"
    return Edited(
        replace(parts, functions={**parts.functions, function: text}),
        what,
        "One term less: it is not known to help.",
    )


EDITS: dict[str, Edit] = {
    "insert-condition": insert_condition,
    "remove-condition": remove_condition,
    "add-term": add_term,
    "remove-term": remove_term,
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
        """The function with these summands instead."""
        indent = " " * self.statement.col_offset
        first = ("-" if terms[0][0] == "-" else "") + terms[0][1]
        rest = [f"{sign} {term}" for sign, term in terms[1:]]
        one_line = " ".join([first, *rest])
        start, end = ("costs = [", "]") if self.tail else ("return (", ")")
        short = f"costs = [{one_line} {self.tail}]" if self.tail else f"return {one_line}"
        if len(indent + short) <= LINE_LENGTH:
            new = [indent + short]
        else:
            inner = [one_line] if len(indent + "    " + one_line) <= LINE_LENGTH else [first, *rest]
            inner += [self.tail] if self.tail else []
            new = [indent + start, *(f"{indent}    {part}" for part in inner), indent + end]
        lines = self.text.splitlines()
        lines[self.statement.lineno - 1 : self.statement.end_lineno] = new
        return "\n".join(lines)


def _sum_in(parts: Parts, function: str) -> _Sum | None:
    text = parts.functions[function]
    for node in _function(text).body:
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


def _amended(text: str, remark: str) -> str:
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


def _function(text: str) -> ast.FunctionDef:
    node = ast.parse(text).body[0]
    if not isinstance(node, ast.FunctionDef):
        raise TypeError(f"not a function: {text[:60]!r}")
    return node


def _has_docstring(function: ast.FunctionDef) -> bool:
    return ast.get_docstring(function) is not None
