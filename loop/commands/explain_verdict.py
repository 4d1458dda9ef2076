"""The words of `strategy explain`: where time goes, what is replanned, and a verdict that claims no more than
was measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from loop.commands.pairing import SAME, Gain, PairedWindow, Parts, changes, gain
from loop.compose.objective import Objective
from loop.contracts import Plan, RunResult


@dataclass(frozen=True, slots=True)
class Verdict:
    """What can be said."""

    judgement: str
    """`better`, `probably better`, `no difference`, `mixed`, `probably worse` or `worse`."""
    nominal: Gain
    """Over the windows of the nominal world."""
    nominal_ratio: float
    """Of the summed objectives."""
    world_ratios: tuple[float, ...]
    """Of the summed objectives, in each perturbed world."""
    won: int
    lost: int
    same: int
    words: tuple[str, ...]


def verdict(
    mine: str,
    theirs: str,
    windows: Sequence[PairedWindow],
    worlds: Sequence[Sequence[PairedWindow]],
    ours: RunResult,
    base: RunResult,
    objective: Objective,
) -> Verdict:
    """Weigh the nominal and the perturbed worlds."""
    nominal = gain([w.ratio for w in windows])
    ratio = _ratio(windows)
    others = tuple(_ratio(world) for world in worlds)
    won = sum(w.ratio < 1.0 - SAME for w in windows)
    lost = sum(w.ratio > 1.0 + SAME for w in windows)
    same = len(windows) - won - lost
    judgement = _judgement(ratio, nominal, others)
    lines = [
        f"{_JUDGEMENTS[judgement].format(mine=mine, theirs=theirs)} ({objective}, this workload, cluster and model "
        "only).",
        f"Nominal world: {_share(ratio)} in sum; it wins {won} of {len(windows)} windows, loses {lost}, {same} the "
        f"same. {_spread(nominal)}",
    ]
    if others:
        lines.append(
            f"{len(others)} perturbed world{'s' if len(others) > 1 else ''} (other hardware, requests drawn anew): "
            f"{', '.join(f'{r:.3f}' for r in others)} of {theirs}."
        )
    else:
        lines.append(
            "No perturbed world was tried (--worlds): how it does where hardware differs is not known."
        )
    lines += _cautions(ours, base)
    return Verdict(judgement, nominal, ratio, others, won, lost, same, tuple(lines))


_JUDGEMENTS = {
    "better": "{mine} is better than {theirs}",
    "probably better": "{mine} is probably better than {theirs}, but that is not proven",
    "no difference": "No difference between {mine} and {theirs} can be told",
    "mixed": "{mine} is better than {theirs} in some worlds and worse in others",
    "probably worse": "{mine} is probably worse than {theirs}",
    "worse": "{mine} is worse than {theirs}",
}


def _judgement(ratio: float, nominal: Gain, others: Sequence[float]) -> str:
    """`better` needs every world, and windows that agree beyond two standard errors."""
    everywhere = (ratio, *others)
    if all(abs(r - 1.0) < SAME for r in everywhere):
        return "no difference"
    below, above = all(r < 1.0 for r in everywhere), all(r > 1.0 for r in everywhere)
    if below:
        return "better" if nominal.high < 1.0 and others else "probably better"
    if above:
        return "worse" if nominal.low > 1.0 and others else "probably worse"
    return "mixed"


def _cautions(ours: RunResult, base: RunResult) -> list[str]:
    """What else got worse: an objective that falls is not everything."""
    found = []
    a, b = ours.stats, base.stats
    if b.ttft_s.p99 > 0 and a.ttft_s.p99 > 1.05 * b.ttft_s.p99:
        found.append(f"TTFT p99 is {a.ttft_s.p99 / b.ttft_s.p99 - 1:.0%} longer")
    if a.goodput < b.goodput - 0.005:
        found.append(f"goodput is {100 * (b.goodput - a.goodput):.1f} points lower")
    if ours.resources.device_s > 1.05 * base.resources.device_s:
        found.append(
            f"it takes {ours.resources.device_s / base.resources.device_s - 1:.0%} more device-hours"
        )
    unserved = (a.rejected + a.lost) - (b.rejected + b.lost)
    if unserved > 0:
        found.append(f"it leaves {unserved:,} more requests unserved")
    if ours.faults.total:
        found.append(f"{ours.faults.total} of its decisions were faults, answered by the fallback")
    return [f"But in the nominal world {'; '.join(found)}."] if found else []


def time_words(mine: str, ours: Parts, theirs: str, base: Parts) -> list[str]:
    """Serving, reconfiguration and solve of both, and what the difference is made of."""
    lines = [
        f"{name}: {p.total_s:,.1f} s = {p.serving_s:,.1f} serving + {p.reconfiguration_s:,.1f} reconfiguration + "
        f"{p.solve_s:,.2f} solve"
        for name, p in ((theirs, base), (mine, ours))
    ]
    saved = base.total_s - ours.total_s
    parts = [
        (base.serving_s - ours.serving_s, "serving"),
        (base.reconfiguration_s - ours.reconfiguration_s, "reconfiguration"),
        (base.solve_s - ours.solve_s, "solve"),
    ]
    told = ", ".join(f"{value:+,.1f} s by {name}" for value, name in parts if abs(value) >= 0.05)
    word = "saves" if saved >= 0 else "loses"
    lines.append(
        f"{mine} {word} {abs(saved):,.1f} s of total time" + (f": {told} (+ is saved)" if told else "")
    )
    return lines


def replan_words(mine: str, ours: RunResult, theirs: str, base: RunResult) -> str:
    """How often each brings about another plan, where, and for which reason."""
    told = []
    for name, run in ((mine, ours), (theirs, base)):
        changed = sorted(changes(run))
        if not changed:
            told.append(f"{name} keeps its first plan in all {len(run.windows)} windows")
            continue
        reasons = Counter(run.windows[i].plan.reason or "no reason given" for i in changed)
        where = ", ".join(str(run.windows[i].index) for i in changed[:12]) + (
            ", ..." if len(changed) > 12 else ""
        )
        why = ", ".join(f"{reason} ({n})" for reason, n in reasons.most_common(3))
        told.append(
            f"{name} brings about another plan in {len(changed)} of {len(run.windows)} windows (at {where}): {why}"
        )
    return "; ".join(told) + "."


def layout_words(mine: str, ours: RunResult, theirs: str, base: RunResult) -> str:
    """The plan that each serves with for most windows."""
    return (
        "; ".join(f"{name} mostly serves with {_layout(run)}" for name, run in ((mine, ours), (theirs, base)))
        + "."
    )


def _layout(run: RunResult) -> str:
    texts = Counter(_plan_words(w.plan) for w in run.windows)
    return texts.most_common(1)[0][0] if texts else "nothing"


def _plan_words(plan: Plan) -> str:
    shapes = Counter(
        f"TP{r.tp}" + (f" PP{r.pp}" if r.pp > 1 else "") + (f" {r.role}" if r.role != "mixed" else "")
        for r in plan.replicas
    )
    devices = sum(len(r.devices) for r in plan.replicas)
    shown = ", ".join(f"{n} x {shape}" for shape, n in sorted(shapes.items(), key=lambda item: -item[1]))
    return f"{len(plan.replicas)} replicas on {devices} devices ({shown})"


def _ratio(windows: Sequence[PairedWindow]) -> float:
    theirs = sum(w.theirs for w in windows)
    return sum(w.mine for w in windows) / theirs if theirs else 1.0


def _share(ratio: float) -> str:
    return f"{abs(1.0 - ratio):.1%} {'less' if ratio <= 1.0 else 'more'}"


def _spread(g: Gain) -> str:
    if g.windows < 2:
        return "One window tells nothing of its spread."
    return f"A window takes {g.ratio:.3f} on average ({g.low:.3f} to {g.high:.3f}, two standard errors)."
