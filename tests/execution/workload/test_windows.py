from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.workload import WorkloadError, windows
from loop.contracts import ClusterEvent, EventKind, Request, Workload
from tests.examples import up_to
from tests.execution.workload.strategies import workloads

EVENTS = st.lists(
    st.builds(
        ClusterEvent, st.floats(0, 5000), st.sampled_from(list(EventKind)), st.sampled_from(["n0", "n1"])
    ),
    max_size=8,
)


@settings(max_examples=up_to(40))
@given(workloads(), st.floats(0.5, 500), EVENTS)
def test_every_request_and_event_is_in_exactly_one_window(
    workload: Workload, window_s: float, events: list[ClusterEvent]
) -> None:
    made = windows(workload, window_s, events)
    assert [request for window in made for request in window.requests] == list(workload.requests)
    assert sorted(repr(e) for window in made for e in window.events) == sorted(repr(e) for e in events)
    for index, window in enumerate(made):
        assert window.index == index
        assert window.start_s == (made[index - 1].end_s if index else 0.0)
        assert window.end_s == pytest.approx(window.start_s + window_s)
        moments = [r.arrival_s for r in window.requests] + [e.at_s for e in window.events]
        assert all(window.start_s <= moment < window.end_s for moment in moments)
    if made:
        assert made[-1].requests or made[-1].events


def test_windows_are_half_open_and_empty_ones_stay() -> None:
    requests = tuple(Request(i, t, "m", 1, 1) for i, t in enumerate([0.0, 10.0, 10.0, 35.0]))
    late = ClusterEvent(40.0, EventKind.UP, "n")
    early = ClusterEvent(10.0, EventKind.DOWN, "n")
    made = windows(Workload("w", requests, "s"), 10.0, [late, early])
    assert [len(window.requests) for window in made] == [1, 2, 0, 1, 0]
    assert made[1].events == (early,)
    assert made[4].events == (late,)


def test_nothing_has_no_windows() -> None:
    assert windows(Workload("w", (), "s"), 10.0) == []


@pytest.mark.parametrize("window_s", [0.0, -1.0, math.nan, math.inf, 1e-9])
def test_senseless_windows_are_refused(window_s: float, steady: Workload) -> None:
    with pytest.raises(WorkloadError, match="window"):
        windows(steady, window_s)


@pytest.mark.parametrize("at_s", [-1.0, math.nan, math.inf])
def test_events_outside_of_time_are_refused(at_s: float, steady: Workload) -> None:
    with pytest.raises(WorkloadError, match="event down of n"):
        windows(steady, 10.0, [ClusterEvent(at_s, EventKind.DOWN, "n")])
