"""What the controller does otherwise on a real clock: windows that nobody knows the number of, thought that takes time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loop.contracts import ReplayMode, Window
from loop.controller import Controller
from loop.perception import Perception
from strategy.baselines import load_baseline
from tests.loop.test_controller import Clock, Replanner, config, run, windows, world

ONLINE = ReplayMode.ONLINE


def test_the_next_window_is_asked_for_when_the_one_before_has_passed():
    asked: list[tuple[int, float]] = []
    settings = config(ONLINE)
    perception = Perception(
        tuple(world().models), world().options, slo=settings.slo, mode=ONLINE, window_s=settings.window_s
    )
    twin = world().twin(perception, block_tokens=settings.block_tokens)
    policy = load_baseline("least_loaded")
    controller = Controller(twin, policy, policy, perception, settings.controller)

    def coming() -> Iterator[Window]:
        for window in windows(3):
            asked.append((window.index, twin.now_s))
            yield window

    results = list(controller.steps(coming()))
    assert [r.index for r in results] == [0, 1, 2]
    assert [index for index, _ in asked] == [0, 1, 2]
    assert [at_s - controller.origin_s for _, at_s in asked[1:]] == pytest.approx([60.0, 120.0])
    assert sum(r.stats.finished for r in results) == 120  # the last one is served to its end


def test_thought_that_took_time_on_the_plane_s_clock_is_not_let_pass_again():
    cut = windows(3)
    charged = run(Replanner(), cut, config=config(ONLINE), solve_clock=Clock(5.0))
    real = run(Replanner(), cut, config=config(ONLINE, real_time=True), solve_clock=Clock(5.0))
    assert [w.solve_charged_s for w in charged.windows][1:] == [5.0, 5.0]
    assert [w.solve_charged_s for w in real.windows] == [
        0.0,
        0.0,
        0.0,
    ]  # the twin's clock stood still meanwhile
    assert [len(w.plan.replicas) for w in real.windows] == [len(w.plan.replicas) for w in charged.windows]
