"""An upper bound on the flow of any placement, and why it holds."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

from physical.placement.problem import SINK, SOURCE, Problem


def upper_bound(problem: Problem) -> float:
    """No placement carries more tokens/s than this.

    A flow F passes every layer, so that the machines together do F * layers of token-layers a second. One that
    holds k layers adds at most k * min(rate(k), F). F is the largest for which the machines can add up. And a layer
    is held by one machine of rate F or more, or else by two at least: see `pair_bound`. The links at the ends bind,
    too.
    """
    count = range(len(problem.machines))
    ends = min(
        math.fsum(min(problem.link(SOURCE, i), _peak(problem, i)) for i in count),
        math.fsum(min(problem.link(i, SINK), _peak(problem, i)) for i in count),
    )
    tables = [_best_rates(problem, i) for i in count]
    return min(ends, compute_bound(tables, problem.layers), pair_bound(tables, problem.layers))


def compute_bound(tables: Sequence[Sequence[float]], layers: int) -> float:
    """The bound of machines with these rates (by layers - 1), links aside; 0 where the layers do not fit."""
    if sum(len(table) for table in tables) < layers:
        return 0.0
    # The share of `layers` that the machines can cover at a flow falls as the flow grows: bisect.
    low, high = 0.0, sum(max(table, default=0.0) for table in tables)
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in {low, high}:
            break
        if covered_layers(tables, middle) >= layers:
            low = middle
        else:
            high = middle
    return high


def pair_bound(tables: Sequence[Sequence[float]], layers: int) -> float:
    """The largest flow at which whole machines and halves of pairs still add up to all layers; often infinite.

    A machine too slow for the flow needs another beside it on each of its layers, so that it counts half there (a
    dual feasible function; Fekete and Schepers, 2001).
    """
    most = [len(table) for table in tables]
    if math.fsum(most) / 2 >= layers:
        return math.inf

    def fits(flow: float) -> bool:
        whole = (max((k for k, r in enumerate(t, 1) if r >= flow), default=0) for t in tables)
        return math.fsum(max(a, b / 2) for a, b in zip(whole, most, strict=True)) >= layers

    rates = sorted({rate for table in tables for rate in table})
    first_failing = bisect.bisect_left(rates, True, key=lambda rate: not fits(rate))
    return rates[first_failing - 1] if first_failing else 0.0


def covered_layers(tables: Sequence[Sequence[float]], flow: float) -> float:
    """Layers through which the machines can carry a flow at best, fractions counted."""
    grouped: dict[tuple[float, ...], int] = {}
    for table in tables:
        grouped[tuple(table)] = grouped.get(tuple(table), 0) + 1
    return math.fsum(
        number * max((k * min(rate / flow, 1.0) for k, rate in enumerate(table, 1)), default=0.0)
        for table, number in grouped.items()
    )


def _peak(problem: Problem, machine: int) -> float:
    return max(_best_rates(problem, machine), default=0.0)


def _best_rates(problem: Problem, i: int) -> tuple[float, ...]:
    """With the last layer or without, whichever is quicker."""
    machine = problem.machines[i]
    last = machine.last_tokens_per_s or machine.tokens_per_s
    return tuple(map(max, machine.tokens_per_s, last))[: problem.layers]
