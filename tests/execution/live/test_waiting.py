"""Whoever waits may look around; errors and ends come through, and what is given up on is closed."""

import threading
from collections.abc import Iterator

import pytest

from execution.live.waiting import attended


def test_none_comes_while_the_next_is_awaited_and_nothing_is_lost() -> None:
    go_on = threading.Event()

    def slow() -> Iterator[int]:
        yield 1
        go_on.wait()
        yield 2

    found = attended(slow(), poll_s=0.001)
    seen = [next(found)]
    while seen[-1] is not None:
        seen.append(next(found))
    for _ in range(5):
        assert next(found) is None
    go_on.set()
    rest = [event for event in found if event is not None]
    assert [event for event in seen if event is not None] + rest == [1, 2]


def test_the_next_is_not_begun_before_it_is_asked_for() -> None:
    begun: list[int] = []

    def counting() -> Iterator[int]:
        for number in range(3):
            begun.append(number)
            yield number

    for number, event in enumerate(event for event in attended(counting(), poll_s=0.5) if event is not None):
        assert event == number
        assert begun == list(range(number + 1))


def test_an_error_is_raised_where_it_is_waited_for() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise OSError("no space left")

    found = (event for event in attended(failing()) if event is not None)
    assert next(found) == 1
    with pytest.raises(OSError, match="no space left"):
        next(found)


def test_given_up_on_it_is_closed_where_it_stands() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    found = attended(endless())
    assert any(event == 1 for event in found)
    found.close()
    assert closed.wait(60.0)
