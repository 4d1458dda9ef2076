"""What the user wants, as one number for evolution to lower."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from itertools import pairwise
from statistics import fmean

from loop.contracts import Resources, RunResult, Score, ServingStats, WindowResult

_UNSERVED = 10.0
"""A request refused or lost costs as much as ten served ones: not serving must never pay."""
_UNSERVED_WINDOW = 3600.0
"""Added for a window of which nothing was served, in proportion for a part of it."""


class Objective(StrEnum):
    """Presets. Each is a sum of seconds or of things with a price in seconds; lower is better."""

    TIME = "time"  # total execution time: what batch replay measures
    GOODPUT = "goodput"  # SLO misses first, latency next: for online replay
    COST = "cost"  # device-hours and energy, as long as the SLO is met


def score(result: RunResult, objective: Objective) -> Score:
    """Sum up a run as a score, in all its objectives, with the user's deciding."""
    changes = rearranged(result)
    per_window = tuple(_value(w.total_s, w.stats, w.resources, objective) for w in result.windows)
    return Score(
        objective=sum(per_window),
        total_execution_time_s=result.total_execution_time_s,
        ttft_p99_s=result.stats.ttft_s.p99,
        goodput=result.stats.goodput,
        device_hours=result.resources.device_s / 3600,
        joules=result.resources.joules,
        per_window=per_window,
        faults=result.faults.total,
        replan_rate=fmean(float(c > 0) for c in changes) if changes else 0.0,
        scaling=fmean(changes) if changes else 0.0,
        fingerprint=fingerprint(result),
    )


def rearranged(result: RunResult) -> list[float]:
    """For each window after the first, the share of devices in either plan whose replica changed."""
    shares = []
    for before, after in pairwise(w.plan for w in result.windows):
        old = {d: s.key for s in before.replicas for d in s.devices}
        new = {d: s.key for s in after.replicas for d in s.devices}
        devices = old.keys() | new.keys()
        shares.append(sum(old.get(d) != new.get(d) for d in devices) / max(1, len(devices)))
    return shares


def fingerprint(result: RunResult) -> str:
    """Equal for runs that went the same way, to the microsecond: 16 hex digits."""
    told = [(round(w.total_s, 6), round(w.stats.ttft_s.mean, 6), w.stats.finished) for w in result.windows]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def window_value(window: WindowResult, objective: Objective) -> float:
    """The objective of one window."""
    return _value(window.total_s, window.stats, window.resources, objective)


def _value(total_s: float, stats: ServingStats, spent: Resources, objective: Objective) -> float:
    requests = stats.finished + stats.rejected + stats.lost
    unserved = (stats.rejected + stats.lost) / requests if requests else 0.0
    missed = 1.0 - stats.goodput
    if objective is Objective.TIME:
        value = total_s
    elif objective is Objective.GOODPUT:
        # A window with every SLO missed weighs 100; one second of mean or a tenth of tail latency weighs 1.
        value = 100.0 * missed + stats.e2e_s.mean + 0.1 * stats.ttft_s.p99
    else:
        value = spent.usd + spent.joules / 3.6e6 * 0.15 + 100.0 * max(0.0, missed - 0.01)
    return value * (1.0 + _UNSERVED * unserved) + _UNSERVED_WINDOW * unserved
