"""Past windows as if they came next: what is replayed, from where, and how it is weighed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loop.compose.evolving import regime_of, stages_for
from loop.compose.objective import Objective
from loop.compose.replay import ReplayConfig
from loop.compose.scoring import HORIZON_WINDOWS, ScoringSetup, as_next
from loop.compose.world import WorldSpec
from loop.contracts import (
    EMPTY_PLAN,
    ClusterEvent,
    EventKind,
    Quantiles,
    ReplayMode,
    Request,
    Resources,
    ServingStats,
    Slo,
    Window,
    WindowResult,
)
from loop.controller import ControllerConfig
from loop.runner.evolution import PastWindow
from tests.loop.builders import device, observation

NOTHING = Quantiles()
STATS = ServingStats(0, 0, 0, 0, 0, NOTHING, NOTHING, NOTHING, 0, 0, 0, 0)
RESULT = WindowResult(0, 1.0, 1.0, 0.0, 0.0, 0.0, False, "first", EMPTY_PLAN, STATS, Resources())
SETUP = ScoringSetup(
    (WorldSpec("laptop-2", ("m",)),) * 2,
    (),
    ReplayConfig(ControllerConfig(), Slo(), 100.0, 512),
    Objective.TIME,
    ("long-answers",),
)


def past(index: int, count: int = 10, output: int = 50) -> PastWindow:
    start_s = 100.0 * index
    requests = [Request(i, start_s + i, "m", 100, output) for i in range(count)]
    events = (ClusterEvent(start_s, EventKind.DOWN, "d0"),)
    window = Window(index, start_s, start_s + 100.0, requests, events)
    return PastWindow(window, observation(tick=index), replace(RESULT, index=index), None)


def test_one_window_comes_twice_from_what_is_seen_now() -> None:
    now = observation(tick=7)
    segment = as_next([past(6)], now, past(6))
    assert [w.index for w in segment.windows] == [7, 8]
    assert all(w.events == () for w in segment.windows)
    assert segment.start.obs is now
    assert segment.as_one


def test_online_the_windows_follow_each_other_in_time() -> None:
    now = replace(observation(tick=7), mode=ReplayMode.ONLINE, window_s=100.0)
    first, second = as_next([past(2)], now, past(6)).windows
    assert (first.start_s, first.end_s, second.start_s) == (700.0, 800.0, 800.0)
    assert first.requests[0].arrival_s == 700.0
    assert second.requests[-1].arrival_s == 809.0


def test_a_regime_is_another_when_lengths_devices_or_speeds_are() -> None:
    base = past(3)
    assert regime_of(base) == regime_of(past(4))
    assert regime_of(past(3, output=90)) != regime_of(base)
    devices = (device("n0/g0"), device("n0/g1", speed=0.5))
    assert regime_of(replace(base, obs=replace(base.obs, devices=devices))) != regime_of(base)


def test_stages_keep_to_the_regime_and_rehearse_only_when_asked() -> None:
    history = [past(0), past(1), past(2, output=900), past(3)]
    stages = stages_for(history, 1, SETUP)
    assert stages.smoke.windows == (3,)
    assert stages.full.world == SETUP.rehearsing == 2
    assert stages.held_out is not None
    assert stages.held_out.windows == (1,)
    assert [t.world for t in stages.perturbed] == [1]
    assert stages.rehearsed is not None
    assert (stages.rehearsed.windows, stages.rehearsed.world) == ((3,), SETUP.rehearsing_all)
    assert stages_for(history, 1, SETUP, rehearse=False).full.world == 0
    assert stages_for(history[:3], 1, SETUP).held_out is None


@pytest.mark.parametrize("count", [1, 3])
def test_several_windows_come_in_their_order(count: int) -> None:
    chosen = [past(i) for i in range(count)]
    windows = as_next(chosen, observation(tick=9), past(8)).windows
    assert [w.index for w in windows] == list(range(9, 9 + max(2, count)))


def test_a_change_is_paid_once_in_the_horizon_unless_the_next_one_is_near() -> None:
    calm = as_next([past(6)], observation(tick=7), past(6))
    assert calm.weights == (2 / HORIZON_WINDOWS, 2 - 2 / HORIZON_WINDOWS)
    churn = as_next([past(6)], observation(tick=7, changes=("down:d0",)), past(6))
    assert churn.weights == (2.0, 0.0)
    assert as_next([past(5), past(6)], observation(tick=7), past(6)).weights == ()
