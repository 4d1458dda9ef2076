"""What binds a placement, in words: the minimum cut, how busy the rest is, and how far the bound is."""

from __future__ import annotations

from collections.abc import Sequence

from physical.placement.flow import Cut, Flow
from physical.placement.problem import SINK, SOURCE, Problem, Run


def explain(problem: Problem, placement: Sequence[Run], flow: Flow, bound: float) -> list[str]:
    """Sentences, the most telling first."""
    if flow.tokens_per_s <= 0.0:
        return [_why_nothing(problem, placement)]
    words = [_cut_words(problem, placement, flow, cut) for cut in flow.cuts]
    words += _slack(problem, placement, flow)
    if bound < float("inf"):
        share = flow.tokens_per_s / bound
        if share >= 1.0 - 1e-9:
            words.append("No placement on these machines carries more: the bound is reached.")
        else:
            words.append(f"At most {bound:,.0f} tokens/s on these machines; {share:.0%} of that is reached.")
    idle = [problem.machines[i].name for i, run in enumerate(placement) if not flow.machines[i]]
    if idle:
        words.append(f"Nothing flows through {len(idle)}: {_some(idle)}.")
    return words


def name_of(problem: Problem, end: int) -> str:
    """A machine's name, `source` or `sink`."""
    if end in {SOURCE, SINK}:
        return "source" if end == SOURCE else "sink"
    return problem.machines[end].name


def _cut_words(problem: Problem, placement: Sequence[Run], flow: Flow, cut: Cut) -> str:
    parts = []
    grouped: dict[tuple[str, int], list[int]] = {}
    for i in cut.machines:
        grouped.setdefault((problem.machines[i].kind, placement[i].count), []).append(i)
    for (kind, count), members in sorted(grouped.items()):
        rate = sum(problem.rate(i, placement[i]) for i in members)
        names = _some([f"{problem.machines[i].name} (layers {_span(placement[i])})" for i in members])
        parts.append(f"{len(members)} x {kind} with {count} layers, full at {rate:,.0f} tokens/s: {names}")
    for a, b in cut.links:
        rate = problem.link(a, b)
        parts.append(f"the link {name_of(problem, a)} -> {name_of(problem, b)}, full at {rate:,.0f} tokens/s")
    return f"What binds the {flow.tokens_per_s:,.0f} tokens/s: " + "; and ".join(parts) + "."


def _slack(problem: Problem, placement: Sequence[Run], flow: Flow) -> list[str]:
    """How busy each kind is."""
    loads: dict[str, list[float]] = {}
    for i, run in enumerate(placement):
        if run.count and (rate := problem.rate(i, run)) > 0.0:
            loads.setdefault(problem.machines[i].kind, []).append(flow.machines[i] / rate)
    if not loads:
        return []
    shares = ", ".join(f"{kind} {sum(v) / len(v):.0%}" for kind, v in sorted(loads.items()))
    return [f"Share of their rate that is used: {shares}."]


def _why_nothing(problem: Problem, placement: Sequence[Run]) -> str:
    able = sum(problem.most(i) for i in range(len(problem.machines)))
    if able < problem.layers:
        return f"Nothing flows: all machines together hold {able} layers of {problem.layers}."
    held = {layer for run in placement for layer in range(run.start, run.end)}
    missing = sorted(set(range(problem.layers)) - held)
    if missing:
        return f"Nothing flows: nobody holds layer {missing[0]}."
    return (
        "Nothing flows: no runs of layers join up from the first to the last over links that carry anything."
    )


def _span(run: Run) -> str:
    return f"{run.start}-{run.end - 1}"


def _some(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
