"""Free time of a resource with interchangeable lanes: units of a group, streams of a link.

A lane is two lists, the starts and the ends of its gaps in order; the last gap never ends. Dense schedules have
few gaps, so that a search looks at few.
"""

from __future__ import annotations

import math
from bisect import bisect_right

Lane = tuple[list[float], list[float]]
"""Starts and ends of the gaps."""


def fresh(lanes: int) -> list[Lane]:
    """Lanes that are free from 0 on."""
    return [([0.0], [math.inf]) for _ in range(lanes)]


def earliest(lanes: list[Lane], ready_s: float, takes_s: float) -> tuple[float, int]:
    """(start, lane) of the first gap at or after `ready_s` that holds `takes_s`."""
    best, chosen = math.inf, 0
    for number, (starts, ends) in enumerate(lanes):
        start = starts[-1]
        if start <= ready_s:
            return ready_s, number
        if len(starts) > 1:
            gap = bisect_right(ends, ready_s)
            while True:
                start = starts[gap]
                if start < ready_s:  # noqa: PLR1730  # twice as quick as max() in the innermost loop
                    start = ready_s
                if start + takes_s <= ends[gap]:
                    break
                gap += 1
            if start <= ready_s:
                return start, number
        if start < best:
            best, chosen = start, number
    return best, chosen


def joint(lanes: list[Lane], others: list[Lane], ready_s: float, takes_s: float) -> tuple[float, int, int]:
    """(start, lane, other lane) of the first time at which two resources are free together for so long."""
    at, lane = earliest(lanes, ready_s, takes_s)
    while True:
        later, other = earliest(others, at, takes_s)
        if later == at:
            return at, lane, other
        at, lane = earliest(lanes, later, takes_s)
        if at == later:
            return at, lane, other


def occupy(lane: Lane, start_s: float, end_s: float, least_s: float) -> None:
    """Take [start_s, end_s) out of the gap that holds it; what is left of a gap and shorter than `least_s`
    is forgotten."""
    starts, ends = lane
    gap = bisect_right(starts, start_s) - 1
    left, right = starts[gap], ends[gap]
    if right - end_s >= least_s:
        starts[gap] = end_s
        if start_s - left >= least_s and start_s > left:
            starts.insert(gap, left)
            ends.insert(gap, start_s)
    elif start_s - left >= least_s and start_s > left:
        ends[gap] = start_s
    else:
        del starts[gap]
        del ends[gap]
