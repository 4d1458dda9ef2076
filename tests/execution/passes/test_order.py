"""Orders of execution: every search gives a valid order, and the exact one is minimal by exhaustion."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.passes.order_exact import SearchBudget, cut_points, minimal_order
from execution.passes.order_problem import Operation, OrderProblem, least_peak_bytes, live_bytes, peak_bytes
from execution.passes.order_search import quick_orders
from tests.examples import up_to


def random_problem(seed: int, most: int = 8) -> OrderProblem:
    chance = random.Random(seed)
    n = chance.randint(1, most)
    operations = []
    for i in range(n):
        before = tuple(j for j in range(i) if chance.random() < 2 / n)
        reuses = before if chance.random() < 0.5 else ()
        operations.append(Operation(before, chance.choice([0, 1, 2, 5, 8]), before, reuses))
    return OrderProblem.of(operations, keep={n - 1})


def least_by_exhaustion(problem: OrderProblem) -> int:
    best = peak_bytes(problem, problem.program)

    def go(done: int, live: int, peak: int) -> None:
        nonlocal best
        if peak >= best:
            return
        if done == (1 << len(problem)) - 1:
            best = peak
            return
        for i in range(len(problem)):
            if not done >> i & 1 and not problem.before[i] & ~done:
                now = done | 1 << i
                after = live + problem.size[i] - problem.freed_after(i, now)
                go(now, after, max(peak, live + problem.rise(i, now)))

    go(0, 0, 0)
    return best


@settings(max_examples=up_to(80), deadline=None)
@given(st.integers(0, 10**6))
def test_the_exact_order_is_minimal(seed: int) -> None:
    problem = random_problem(seed)

    found = minimal_order(problem)

    assert found.minimal
    assert peak_bytes(problem, found.order) == found.peak_bytes == least_by_exhaustion(problem)


@settings(max_examples=up_to(40), deadline=None)
@given(st.integers(0, 10**6))
def test_every_order_is_valid_and_none_beats_the_bound(seed: int) -> None:
    problem = random_problem(seed, most=30)
    bound = max(least_peak_bytes(problem, i) for i in range(len(problem)))
    for name, order in quick_orders(problem).items():
        assert peak_bytes(problem, order) >= bound, name
    found = minimal_order(problem, SearchBudget(4, 50))
    assert bound <= found.peak_bytes <= found.program_peak_bytes


def test_parts_meet_at_operations_that_all_others_come_before_or_after() -> None:
    diamond = [((), 4), ((0,), 4), ((0,), 4), ((1, 2), 4), ((3,), 4)]
    problem = OrderProblem.of([Operation(before, size, before) for before, size in diamond])

    assert cut_points(problem) == [(0,), (1, 2, 3), (4,)]


def test_towers_are_run_one_by_one() -> None:
    """Eight wide hidden layers, each needed only for its own small result."""
    wide = [Operation((), 100, ()) for _ in range(8)]
    narrow = [Operation((i,), 1, (i,)) for i in range(8)]
    last = Operation(tuple(range(8, 16)), 1, tuple(range(8, 16)))
    problem = OrderProblem.of([*wide, *narrow, last], keep={16})

    found = minimal_order(problem)

    assert (found.program_peak_bytes, found.peak_bytes, found.minimal) == (801, 108, True)


def test_values_written_over_take_no_memory() -> None:
    chain = OrderProblem.of(
        [Operation((), 8, ()), Operation((0,), 8, (0,), (0,)), Operation((1,), 8, (1,), (1,))], keep={2}
    )
    assert live_bytes(chain, (0, 1, 2)) == [8, 8, 8]


def _twice(problem: OrderProblem) -> object:
    return live_bytes(problem, (0, 0))


def _backwards(problem: OrderProblem) -> object:
    return live_bytes(problem, (1, 0))


@pytest.mark.parametrize(("call", "told"), [(_twice, "names each once"), (_backwards, "must wait")])
def test_an_order_that_is_none_is_refused(call: Callable[[OrderProblem], object], told: str) -> None:
    problem = OrderProblem.of([Operation((), 1, ()), Operation((0,), 1, (0,))])
    with pytest.raises(ValueError, match=told):
        call(problem)


def test_operations_in_no_program_order_are_refused() -> None:
    with pytest.raises(ValueError, match="operation 0 waits for operation 1"):
        OrderProblem.of([Operation((1,), 1, ()), Operation((), 1, ())])
