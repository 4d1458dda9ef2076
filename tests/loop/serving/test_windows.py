"""Windows from live traffic: what arrived when, how long answers are, and what is put right later."""

from __future__ import annotations

from itertools import islice

from loop.contracts import Finish, PolicySource, Request, Window
from loop.runner.evolution import BackgroundEvolution
from loop.runner.serving_windows import LiveSource, WindowBook, live_windows
from strategy.baselines import load_baseline
from tests.loop.builders import observation
from tests.loop.serving.builders import window_result

ORIGIN_S = 100.0
FIRST = load_baseline("least_loaded").as_source()


def request(number: int, arrival_s: float, output_tokens: int = 10) -> Request:
    return Request(number, ORIGIN_S + arrival_s, "m", 8, output_tokens)


def test_windows_go_on_until_somebody_stops_and_there_is_one_at_least():
    windows = list(islice(live_windows(5.0, lambda: False), 3))
    assert [(w.index, w.start_s, w.end_s) for w in windows] == [
        (0, 0.0, 5.0),
        (1, 5.0, 10.0),
        (2, 10.0, 15.0),
    ]
    assert len(list(live_windows(5.0, lambda: True))) == 1


def test_a_window_holds_what_arrived_in_it_in_trace_time_and_order():
    book = WindowBook()
    for r in (request(2, 5.5), request(0, 4.9), request(1, 5.0), request(3, 10.0)):
        book.over(r, Finish.OK)
    window = book.fill(Window(1, 5.0, 10.0, ()), ORIGIN_S)
    assert [(r.id, r.arrival_s) for r in window.requests] == [(1, 5.0), (2, 5.5)]


def test_answers_under_way_are_guessed_from_those_that_are_over():
    book = WindowBook()
    book.over(request(0, 1.0, 30), Finish.OK)
    book.over(request(1, 1.0, 10), Finish.OK)
    window = book.fill(Window(0, 0.0, 5.0, ()), ORIGIN_S, [request(2, 2.0, 3), request(3, 2.0, 90)])
    assert [r.output_tokens for r in window.requests] == [30, 10, 20, 90]


def test_what_was_refused_or_lost_was_asked_for_what_is_infeasible_was_not():
    book = WindowBook()
    book.over(request(0, 1.0, 40), Finish.OK)
    book.over(request(1, 1.0, 1), Finish.REJECTED)
    book.over(request(2, 1.0, 1), Finish.LOST)
    book.over(request(3, 1.0, 1), Finish.INFEASIBLE)
    book.over(request(4, 1.0, 7), Finish.CANCELLED)
    window = book.fill(Window(0, 0.0, 5.0, ()), ORIGIN_S)
    assert [(r.id, r.output_tokens) for r in window.requests] == [(0, 40), (1, 40), (2, 40), (4, 7)]


def evolution() -> BackgroundEvolution:
    def load(_source: PolicySource) -> object:
        raise AssertionError("nothing is loaded here")

    return BackgroundEvolution(FIRST, None, load, waits=False, keep_windows=2)  # type: ignore[arg-type]


def test_the_window_before_is_put_right_when_its_answers_are_over():
    background, book = evolution(), WindowBook()
    under_way = [request(0, 4.0, 2)]
    source = LiveSource(background, book, origin_s=lambda: ORIGIN_S, open_requests=lambda: under_way)
    source.window_ended(Window(0, 0.0, 5.0, ()), window_result(0), observation(tick=0))
    assert [r.output_tokens for r in background.past[0].window.requests] == [2]
    book.over(request(0, 4.0, 50), Finish.OK)
    book.over(request(1, 6.0, 5), Finish.OK)
    under_way.clear()
    source.window_ended(Window(1, 5.0, 10.0, ()), window_result(1), observation(tick=1))
    assert [[r.output_tokens for r in p.window.requests] for p in background.past] == [[50], [5]]
    background.close()


def test_an_idle_window_teaches_nothing_and_old_ones_are_forgotten():
    background, book = evolution(), WindowBook()
    source = LiveSource(background, book, origin_s=lambda: ORIGIN_S, open_requests=tuple)
    for index in range(5):
        if index != 2:
            book.over(request(index, 5.0 * index + 1.0), Finish.OK)
        window = Window(index, 5.0 * index, 5.0 * index + 5.0, ())
        source.window_ended(window, window_result(index), observation(tick=index))
    assert [p.window.index for p in background.past] == [3, 4]
    assert background.next_policy(observation(tick=5)) is None  # no step: nothing evolves here
    background.close()
