"""Orders of execution found quickly: greedy by liveness, depth-first in several ways, and beam search.

Each takes an OrderProblem and gives a valid order; `execution.passes.order_exact` proves minima on what is small.
All but program order use *free moves*: an operation that frees at least what it takes, and does not raise the peak so
far, never costs anything by running at once (moving it forward lowers the live bytes of all that it passes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from execution.passes.order_problem import OrderProblem, members

Order = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class State:
    """What has run, what that cost, and how one got there."""

    done: int
    ready: int
    live: int
    peak: int
    last: State | None
    """The state before; following it gives the order."""
    ran: tuple[int, ...]
    """Operations run since `last`."""
    within: int = -1
    """Mask of the operations that may run at all: a part of the graph is searched by itself."""

    def order(self) -> Order:
        """All operations run so far."""
        parts = []
        state: State | None = self
        while state is not None:
            parts.append(state.ran)
            state = state.last
        return tuple(i for part in reversed(parts) for i in part)


def start(problem: OrderProblem) -> State:
    """Nothing has run but what is free."""
    return settle(problem, State(0, problem.first_ready, 0, 0, None, ()))


def settle(problem: OrderProblem, state: State) -> State:
    """The state after all its free moves."""
    done, ready, live, peak = state.done, state.ready, state.live, state.peak
    ran = list(state.ran)
    moved = True
    while moved:
        moved = False
        for i in members(ready & state.within):
            size = problem.size[i]
            now = done | 1 << i
            if live + problem.rise(i, now) > peak:
                continue
            freed = problem.freed_after(i, now)
            if freed >= size:
                done, live = now, live + size - freed
                ready = problem.ready_after(i, done, ready)
                ran.append(i)
                moved = True
    return State(done, ready, live, peak, state.last, tuple(ran), state.within)


def step(problem: OrderProblem, state: State, i: int) -> State:
    """The state after operation i and the free moves that follow."""
    done = state.done | 1 << i
    now = state.live + problem.rise(i, done)
    return settle(
        problem,
        State(
            done,
            problem.ready_after(i, done, state.ready),
            state.live + problem.size[i] - problem.freed_after(i, done),
            max(state.peak, now),
            state,
            (i,),
            state.within,
        ),
    )


def program_order(problem: OrderProblem) -> Order:
    """As it was written."""
    return problem.program


def greedy_order(problem: OrderProblem) -> Order:
    """Always the ready operation that adds least, depth first among equals."""
    state = start(problem)
    born = {i: at for at, i in enumerate(state.ran)}
    while state.ready:
        done = state.done

        def adds(i: int, done: int = done) -> tuple[int, int, int]:
            freed = problem.freed_after(i, done | 1 << i)
            newest = max((born[b] for b in problem.touches[i] if b in born), default=-1)
            return problem.size[i] - freed, -newest, i

        state = step(problem, state, min(members(state.ready), key=adds))
        for i in state.ran:
            born[i] = len(born)
    return state.order()


def depth_first_order(problem: OrderProblem, first: Callable[[int], tuple[float, ...]]) -> Order:
    """Each operation just before who needs it, from the last ones back; `first` ranks what an operation needs."""
    order: list[int] = []
    done = 0
    ends = [i for i in range(len(problem)) if not problem.after[i]]
    stack = [(i, False) for i in sorted(ends, key=first, reverse=True)]
    while stack:
        i, needs_met = stack.pop()
        if done >> i & 1:
            continue
        if needs_met:
            done |= 1 << i
            order.append(i)
            continue
        stack.append((i, True))
        needs = [j for j in members(problem.before[i]) if not done >> j & 1]
        stack.extend((j, False) for j in sorted(needs, key=first, reverse=True))
    return tuple(order)


def beam_order(problem: OrderProblem, first: State, width: int, *, below: int) -> State | None:
    """Beam search over sets of finished operations; of two ways to one set, the lower (peak, live) dominates.

    From `first` until nothing is ready within it. `below` is a peak to beat; None: nothing in the beam did.
    """
    beam = [first]
    best: State | None = None
    while beam:
        reached: dict[int, State] = {}
        for state in beam:
            ready = state.ready & state.within
            if not ready:
                best, below = state, state.peak
                continue
            for i in members(ready):
                if state.live + problem.rise(i, state.done | 1 << i) >= below:
                    continue
                following = step(problem, state, i)
                known = reached.get(following.done)
                if known is None or (following.peak, following.live) < (known.peak, known.live):
                    reached[following.done] = following
        alive = [state for state in reached.values() if state.peak < below]
        beam = sorted(alive, key=lambda s: (s.peak, s.live, -s.done.bit_count(), s.done))[:width]
    return best


def depth_first_orders(problem: OrderProblem) -> Mapping[str, Order]:
    """Depth first by three ranks of what to do first: program order, most memory below, most memory kept."""
    below = _memory_below(problem)
    return {
        "depth-first program": depth_first_order(problem, lambda i: (i,)),
        "depth-first heavy": depth_first_order(problem, lambda i: (-below[i], i)),
        "depth-first surplus": depth_first_order(problem, lambda i: (problem.size[i] - below[i], i)),
        "depth-first light": depth_first_order(problem, lambda i: (below[i], i)),
    }


def _memory_below(problem: OrderProblem) -> list[int]:
    """Peak of each operation's needs if each is done on its own, largest first (Sethi and Ullman, 1970)."""
    below: list[int] = []
    for i in range(len(problem)):
        needs = sorted(
            ((below[j], problem.size[j]) for j in members(problem.before[i])), key=lambda n: n[1] - n[0]
        )
        held = peak = 0
        for need, size in needs:
            peak = max(peak, held + need)
            held += size
        below.append(max(peak, held + problem.size[i]))
    return below


def quick_orders(problem: OrderProblem) -> dict[str, Order]:
    """All orders that take no search."""
    return {
        "program": program_order(problem),
        "greedy": greedy_order(problem),
        **depth_first_orders(problem),
    }
