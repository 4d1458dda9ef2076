"""Adopt and extend: what a policy does stays, and an idiom is set beside it, as helpers of one function.

Two triggers that must agree, or of which one suffices; two routing costs of which the larger, the smaller or a
weighted sum decides; two planners of which the better plan is taken.
"""

from __future__ import annotations

import random
from dataclasses import replace

import libcst as cst

from strategy.evolve.parts import LINE_LENGTH, Parts, graft
from strategy.evolve.synthesise.edited import Edited, with_function

MAX_FUNCTIONS = 14
"""A policy of more functions is not extended any further."""
_HEAD = {
    "should_replan": "(obs: Observation, memo: Memo) -> bool:",
    "plan": "(obs: Observation, budget_s: float, memo: Memo) -> Plan:",
    "route": "(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:",
}
_COSTS = "(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> list[float]:"


def combined_triggers(parts: Parts, donor: Parts, name: str, rng: random.Random) -> Edited | None:
    """The policy's own trigger and the donor's: both must agree, or either suffices."""
    beside = _beside(parts, donor, "should_replan", name)
    if beside is None:
        return None
    merged, own, other = beside
    word = rng.choice(["and", "or"])
    doc = f"When {'both agree' if word == 'and' else 'either asks for it'}: the rule so far, and {_words(name)}."
    text = "\n".join(
        [
            f"def should_replan{_HEAD['should_replan']}",
            f'    """{_clipped(doc)}"""',
            f"    first = {own}(obs, memo)",
            f"    second = {other}(obs, memo)  # asked in any case: both keep their memo",
            f"    return first {word} second",
        ]
    )
    why = (
        "Two rules that agree are wrong less often."
        if word == "and"
        else "What one rule does not see the other may."
    )
    return Edited(with_function(merged, "should_replan", text), f"trigger: so far {word} {_words(name)}", why)


def combined_planners(parts: Parts, donor: Parts, name: str) -> Edited | None:
    """The plan of the two planners that is estimated to cost less, in serving and in change."""
    beside = _beside(parts, donor, "plan", name)
    if beside is None:
        return None
    merged, own, other = beside
    text = "\n".join(
        [
            f"def plan{_HEAD['plan']}",
            f'    """{_clipped(f"The better of two plans: as so far, or {_words(name)}.")}"""',
            "    expected = loads(obs)",
            f"    plans = [{own}(obs, budget_s, memo), {other}(obs, budget_s, memo)]",
            "    costs = [",
            "        HORIZON_WINDOWS * plan_makespan_s(obs, candidate.replicas, expected)",
            "        + COST_WEIGHT * reconfiguration_s(obs, candidate)",
            "        for candidate in plans",
            "    ]",
            "    return plans[0] if costs[0] <= costs[1] else plans[1]",
        ]
    )
    constants = {
        "HORIZON_WINDOWS": "HORIZON_WINDOWS = 3.0  # 0.5 to 20: windows for which a layout is expected to stay right",
        "COST_WEIGHT": "COST_WEIGHT = 1.0  # 0.2 to 5: how much a second of stall counts against a second of serving saved",
    }
    needs = ("loads", "plan_makespan_s", "reconfiguration_s")
    edited = with_function(merged, "plan", text, constants, needs)
    return Edited(
        edited,
        f"planner: as so far, or {_words(name)}, whichever is done sooner",
        "No planner is best for every load; the estimate tells them apart.",
    )


def combined_routes(parts: Parts, donor: Parts, name: str, rng: random.Random) -> Edited | None:
    """Routing by the larger, the smaller or a weighted sum of both costs."""
    own_costs, other_costs = _as_costs(parts.functions["route"]), _as_costs(donor.functions["route"])
    if own_costs is None or other_costs is None:
        return None
    parts = replace(parts, functions={**parts.functions, "route": own_costs})
    donor = replace(donor, functions={**donor.functions, "route": other_costs})
    beside = _beside(_with_finish_times(parts), _with_finish_times(donor), "route", name)
    if beside is None:
        return None
    merged, own, other = beside
    merged = replace(
        merged,
        functions={
            n: _fitted(text.replace(") -> int:", ") -> list[float]:", 1)) if n in (own, other) else text
            for n, text in merged.functions.items()
        },
    )
    kind = rng.choice(["max", "min", "sum"])
    cost, words, why = {
        "max": (
            "max(a, b)",
            "the larger of two costs",
            "What one cost does not see the other may: believe the worse.",
        ),
        "min": (
            "min(a, b)",
            "the smaller of two costs",
            "A cost that is too careful is corrected by the other.",
        ),
        "sum": (
            "(1.0 - SECOND_SHARE) * a + SECOND_SHARE * b",
            "a weighted sum of two costs",
            "The errors of two estimates partly cancel out.",
        ),
    }[kind]
    text = "\n".join(
        [
            f"def route{_HEAD['route']}",
            f'    """{_clipped(f"By {words}: as so far, and {_words(name)}.")}"""',
            f"    first = {own}(request, replicas, memo)",
            f"    second = {other}(request, replicas, memo)",
            f"    costs = [{cost} for a, b in zip(first, second, strict=True)]",
            "    return least_cost(request, replicas, costs)",
        ]
    )
    constants = (
        {"SECOND_SHARE": "SECOND_SHARE = 0.5  # 0.05 to 0.95: share of the second cost in the sum"}
        if kind == "sum"
        else {}
    )
    edited = with_function(merged, "route", text, constants, ("least_cost",))
    return Edited(edited, f"routing: {words}, as so far and {_words(name)}", why)


def _beside(parts: Parts, donor: Parts, function: str, name: str) -> tuple[Parts, str, str] | None:
    """Both policies' functions as helpers in one: (parts, name of the own one, name of the donor's)."""
    if len(parts.functions) > MAX_FUNCTIONS:
        return None
    label = {"should_replan": "trigger", "plan": "plan", "route": "costs"}[function]
    taken = {*parts.functions, *donor.functions}
    own, other = _fresh(f"_{label}_so_far", taken), _fresh(f"_{label}_{name}", taken)
    donated = graft(parts, donor, function)
    if _same(parts.functions[function], donated.functions[function]):
        return None
    helpers = {n: text for n, text in donated.functions.items() if n not in parts.functions}
    merged = replace(
        donated,
        modules=donated.modules | parts.modules,
        names={**parts.names, **donated.names},
        constants={**parts.constants, **donated.constants},
        functions={**parts.functions, **helpers},
    )
    functions: dict[str, str] = {}
    for n, text in merged.functions.items():
        if n == function:
            functions[own] = rename_definition(parts.functions[function], function, own)
            functions[other] = rename_definition(donated.functions[function], function, other)
            functions[function] = ""  # takes its place here, the caller writes it
        else:
            functions[n] = text
    return replace(merged, functions=functions), own, other


def rename_definition(text: str, old: str, new: str) -> str:
    """A function under another name; what it calls stays."""
    return _fitted(text.replace(f"def {old}(", f"def {new}(", 1))


def _fitted(text: str) -> str:
    """A function whose first line is split behind its bracket when it has become too long."""
    head, _, body = text.partition("\n")
    if len(head) <= LINE_LENGTH:
        return text
    name, _, rest = head.partition("(")
    parameters, _, result = rest.rpartition(")")
    return f"{name}(\n    {parameters}\n){result}\n{body}"


def _same(a: str, b: str) -> bool:
    return " ".join(a.split()) == " ".join(b.split())


def _fresh(name: str, taken: set[str]) -> str:
    number, fresh = 2, name
    while fresh in taken:
        fresh, number = f"{name}_{number}", number + 1
    taken.add(fresh)
    return fresh


def _with_finish_times(parts: Parts) -> Parts:
    needed = "finish_times_s" in parts.functions["route"]
    if not needed:
        return parts
    return replace(parts, names={**parts.names, "finish_times_s": "strategy.policy_api"})


def _as_costs(text: str) -> str | None:
    """A router as a function that gives all costs; None: it does not choose by costs."""
    returns = _Returns()
    changed = cst.parse_module(text + "\n").visit(returns)
    if not returns.good or returns.bad:
        return None
    code = changed.code.strip("\n")
    return code if max(map(len, code.splitlines())) <= LINE_LENGTH else None


class _Returns(cst.CSTTransformer):
    """`return least_cost(request, replicas, X)` becomes `return X`; `first_to_finish` its list of costs."""

    def __init__(self) -> None:
        self.good = self.bad = 0

    def leave_Return(self, original_node: cst.Return, updated_node: cst.Return) -> cst.Return:  # noqa: N802
        call = original_node.value
        if isinstance(call, cst.Call) and isinstance(call.func, cst.Name):
            if call.func.value == "least_cost" and len(call.args) == 3:
                self.good += 1
                return updated_node.with_changes(value=call.args[2].value)
            if call.func.value == "first_to_finish":
                self.good += 1
                return updated_node.with_changes(value=call.with_changes(func=cst.Name("finish_times_s")))
        self.bad += 1
        return updated_node


def _words(name: str) -> str:
    return name.replace("_", " ")


def _clipped(doc: str) -> str:
    """A docstring that fits on its line."""
    room = LINE_LENGTH - len('    """"""')
    if len(doc) <= room:
        return doc
    return doc[: room - 5].rsplit(" ", 1)[0].rstrip(",.;:") + " ..."
