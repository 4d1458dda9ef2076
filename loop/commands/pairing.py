"""Two policies on the same windows of the same worlds, compared window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import fmean, median, stdev

from loop.compose.objective import Objective, window_value
from loop.contracts import RunResult
from loop.runner.results import WindowInfo

SAME = 0.002
"""Windows whose objective differs by less than this share count as equal."""


@dataclass(frozen=True, slots=True)
class PairedWindow:
    """One window of the nominal world."""

    index: int
    dynamics: tuple[str, ...]
    """What marks it out, in words: load, lengths, events; `usual` when nothing does."""
    requests: int
    mine: float
    """Objective of the policy."""
    theirs: float
    ratio: float
    replanned: bool
    """The policy brought about another plan."""
    replanned_theirs: bool


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the time of a run goes, in seconds."""

    total_s: float
    serving_s: float
    reconfiguration_s: float
    solve_s: float


@dataclass(frozen=True, slots=True)
class Gain:
    """Ratios of windows summed up: `low` and `high` lie two standard errors from the mean."""

    windows: int
    ratio: float
    low: float
    high: float


def pair(
    mine: RunResult, theirs: RunResult, windows: Sequence[WindowInfo], objective: Objective
) -> tuple[PairedWindow, ...]:
    """Both runs, window by window."""
    told = dynamics(windows)
    changed, changed_theirs = changes(mine), changes(theirs)
    return tuple(
        PairedWindow(
            w.index,
            told[i],
            w.requests,
            a := window_value(mine.windows[i], objective),
            b := window_value(theirs.windows[i], objective),
            a / b if b else 1.0,
            i in changed,
            i in changed_theirs,
        )
        for i, w in enumerate(windows)
    )


def dynamics(windows: Sequence[WindowInfo]) -> list[tuple[str, ...]]:
    """What marks each window out against the median one, in words."""
    busy = [w for w in windows if w.requests] or list(windows)
    usual = median(w.requests for w in busy) if busy else 0.0
    long_in = median(w.input_tokens_mean for w in busy) if busy else 0.0
    long_out = median(w.output_tokens_mean for w in busy) if busy else 0.0
    found = []
    for w in windows:
        words = []
        if w.requests > 1.4 * usual:
            words.append("burst")
        elif w.requests < 0.6 * usual:
            words.append("calm")
        for name, mean, middle in (
            ("prompts", w.input_tokens_mean, long_in),
            ("answers", w.output_tokens_mean, long_out),
        ):
            if w.requests and mean > 1.4 * middle:
                words.append(f"long {name}")
            elif w.requests and mean < 0.6 * middle:
                words.append(f"short {name}")
        words += w.events
        found.append(tuple(words) or ("usual",))
    return found


def changes(run: RunResult) -> set[int]:
    """Positions of the windows that another plan was brought about in; the first one begins with its plan."""
    found = set()
    for i in range(1, len(run.windows)):
        before = {r.key for r in run.windows[i - 1].plan.replicas}
        if run.windows[i].replanned and {r.key for r in run.windows[i].plan.replicas} != before:
            found.add(i)
    return found


def gain(ratios: Sequence[float]) -> Gain:
    """Geometric mean of paired ratios, with two standard errors of the mean of their logarithms."""
    logs = [log(r) for r in ratios if r > 0]
    if not logs:
        return Gain(0, 1.0, 1.0, 1.0)
    mean = fmean(logs)
    error = 2.0 * stdev(logs) / sqrt(len(logs)) if len(logs) > 1 else float("inf")
    return Gain(len(logs), exp(mean), exp(mean - error), exp(min(mean + error, 700.0)))


def parts(run: RunResult) -> Parts:
    """Where the time of a run goes."""
    return Parts(run.total_execution_time_s, run.serving_s, run.reconfiguration_s, run.solve_s)


def by_dynamics(windows: Sequence[PairedWindow]) -> list[tuple[str, int, float]]:
    """(what marks windows out, how many there are, ratio of their summed objectives), events taken together;
    a window may count for several."""
    groups: dict[str, list[PairedWindow]] = {}
    known = ("usual", "burst", "calm", "long prompts", "short prompts", "long answers", "short answers")
    for w in windows:
        for word in dict.fromkeys(d if d in known else "an event of the hardware" for d in w.dynamics):
            groups.setdefault(word, []).append(w)
    return [
        (word, len(group), sum(w.mine for w in group) / theirs)
        for word, group in sorted(groups.items(), key=lambda item: -len(item[1]))
        if (theirs := sum(w.theirs for w in group)) > 0
    ]
