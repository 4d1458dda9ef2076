"""Orders of minimal peak memory, proven: best-first dynamic programming over sets of finished operations.

A graph is cut where one operation comes before or after every other: what has run by then is the same in every order,
so the parts are solved one by one (as Serenity does: Ahn et al., "Ordering chaos", 2020). In each part states are
visited by lowest peak first, so that the first to finish is minimal; free moves (order_search) and the best order known
prune the rest. A part too wide for the budget of states keeps the best order known, and the
solution says that it is not proven.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from execution.passes.order_problem import OrderProblem, least_peak_bytes, members, peak_bytes
from execution.passes.order_search import Order, State, beam_order, quick_orders, settle, step


@dataclass(frozen=True, slots=True)
class Solution:
    """The best order found."""

    order: Order
    peak_bytes: int
    how: str
    """What gave it: `program`, `greedy`, `beam`, `exact`, ... or `parts` when several did."""
    minimal: bool
    """True when no order has a lower peak."""
    parts: int
    program_peak_bytes: int
    quick_peaks_bytes: Mapping[str, int]
    """Of program order, greedy and the depth-first ones, for the whole graph."""


@dataclass(frozen=True, slots=True)
class SearchBudget:
    """How much may be searched."""

    beam_width: int = 16
    states: int = 3_000
    """Visited by the exact search, a part."""


def minimal_order(problem: OrderProblem, budget: SearchBudget | None = None) -> Solution:
    """The order of lowest peak memory within the budget; deterministic; never worse than program order."""
    budget = budget or SearchBudget()
    quick = quick_orders(problem)
    known = {name: peak_bytes(problem, order) for name, order in quick.items()}
    pieces: list[Order] = []
    names: set[str] = set()
    proven = True
    parts = cut_points(problem)
    state = State(0, problem.first_ready, 0, 0, None, ())
    for part in parts:
        inside = set(part)
        ways = {name: tuple(i for i in order if i in inside) for name, order in quick.items()}
        order, how, minimal = _solve_part(problem, state, ways, budget)
        pieces.append(order)
        names.update({how} if len(part) > 1 else ())
        proven = proven and minimal
        state = _run(problem, state, order)
    joined = tuple(i for piece in pieces for i in piece)
    how = names.pop() if len(names) == 1 else "parts"
    best, peak = joined, peak_bytes(problem, joined)
    return Solution(best, peak, how, proven, len(parts), known["program"], known)


def cut_points(problem: OrderProblem) -> list[tuple[int, ...]]:
    """Parts that end with an operation that every other one comes before or after; each part's operations."""
    n = len(problem)
    ancestors = [0] * n
    descendants = [0] * n
    for i in range(n):
        for j in members(problem.before[i]):
            ancestors[i] |= 1 << j | ancestors[j]
    for i in range(n - 1, -1, -1):
        for j in problem.after[i]:
            descendants[i] |= 1 << j | descendants[j]
    parts = []
    done = 0
    for i in range(n):
        if (ancestors[i] | descendants[i]).bit_count() == n - 1:
            upto = ancestors[i] | 1 << i
            parts.append(tuple(members(upto & ~done)))
            done = upto
    rest = (1 << n) - 1 & ~done
    return [*parts, tuple(members(rest))] if rest else parts


def exact_order(problem: OrderProblem, first: State, states: int, *, below: int) -> tuple[State | None, bool]:
    """The minimal end state with a peak under `below`, and whether it (or that there is none) is proven.

    Best first over (peak, least left to do); gives up after so many states.
    """
    tie = itertools.count()
    queue = [(first.peak, -first.done.bit_count(), first.live, next(tie), first)]
    seen: dict[int, int] = {first.done: first.peak}
    visited = 0
    while queue:
        peak, _, _, _, state = heapq.heappop(queue)
        if seen[state.done] < peak:
            continue
        ready = state.ready & state.within
        if not ready:
            return state, True
        visited += 1
        if visited > states:
            return None, False
        for i in members(ready):
            if state.live + problem.rise(i, state.done | 1 << i) >= below:
                continue
            following = step(problem, state, i)
            if following.peak < min(below, seen.get(following.done, below)):
                seen[following.done] = following.peak
                key = (following.peak, -following.done.bit_count(), following.live)
                heapq.heappush(queue, (*key, next(tie), following))
    return None, True


def _solve_part(
    problem: OrderProblem, state: State, ways: Mapping[str, Order], budget: SearchBudget
) -> tuple[Order, str, bool]:
    """Best order of one part, what found it, and whether it is proven minimal for the part."""
    part = next(iter(ways.values()))
    if len(part) == 1:
        return part, "program", True
    peaks = {name: _run(problem, state, order).peak for name, order in ways.items()}
    how = min(peaks, key=peaks.__getitem__)
    best, peak = ways[how], peaks[how]
    inside = sum(1 << i for i in part)
    least = max(least_peak_bytes(problem, i) for i in part)
    first = settle(problem, replace(state, within=inside, peak=least, last=None, ran=()))
    if peak > least:
        beam = beam_order(problem, first, budget.beam_width, below=peak)
        if beam is not None:
            best, peak, how = beam.order(), beam.peak, "beam"
    if peak <= least:
        return best, how, True
    exact, proven = exact_order(problem, first, budget.states, below=peak)
    return (best, how, proven) if exact is None else (exact.order(), "exact", proven)


def _run(problem: OrderProblem, state: State, order: Order) -> State:
    """The state after these operations, with the peak of these alone."""
    done, ready, live, peak = state.done, state.ready, state.live, 0
    for i in order:
        done |= 1 << i
        ready = problem.ready_after(i, done, ready)
        peak = max(peak, live + problem.rise(i, done))
        live += problem.size[i] - problem.freed_after(i, done)
    return State(done, ready, live, peak, None, order)
