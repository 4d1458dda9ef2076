"""The controller where it is easily wrong: a replay from the middle, windows that get stuck, bad plans."""

from __future__ import annotations

import pytest

from loop.compose.objective import Objective, window_value
from loop.compose.replay import Start, replay
from loop.compose.world import WorldSpec, build_world
from loop.contracts import (
    EMPTY_PLAN,
    ClusterEvent,
    EventKind,
    Memo,
    Observation,
    Plan,
    Quantiles,
    ReplayMode,
    ReplicaSpec,
    Request,
    Resources,
    ServingStats,
    Window,
    WindowResult,
)
from loop.guard import plan_problems
from loop.journal import Decision, replay_decision
from strategy.baselines import load_baseline
from tests.loop.builders import ScriptedPolicy, observation
from tests.loop.test_controller import Clock, Replanner, config, run, windows, world

LARGE = "llama-3.1-70b"


class Spy(Replanner):
    """Keeps what it saw; replans at tick 1 only."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Observation] = []
        self.asked: list[Observation] = []

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        self.seen.append(obs)
        return obs.tick == 1

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        self.asked.append(obs)
        return super().plan(obs, budget_s, memo)


class Calm(Spy):
    """Never replans by itself."""

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        super().should_replan(obs, memo)
        return False


class OneNode(Calm):
    """Deploys on the first node that is up, and nowhere else."""

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        up = {d.id for d in obs.devices if d.available}
        full = self._base.plan(obs, budget_s, memo)
        usable = [r for r in full.replicas if up.issuperset(r.devices)]
        node = min(r.devices[0].split("/")[0] for r in usable)
        return Plan(tuple(r for r in usable if r.devices[0].startswith(node + "/")))


def test_a_replay_from_the_middle_is_asked_the_same_question() -> None:
    whole, part = Spy(), Spy()
    cut = windows(5)
    run(whole, cut, solve_clock=Clock(0.0))
    run(part, cut[3:], start=Start(whole.seen[3], whole.seen[2]), solve_clock=Clock(0.0))
    for name in ("ticks_since_replan", "last_serving_s", "last_reconfiguration_s", "history", "demand"):
        assert getattr(part.seen[0], name) == getattr(whole.seen[3], name), name
    judged = [d.waiting for window in whole.seen[4].history for d in window]
    assert [d.waiting for window in part.seen[1].history for d in window] == judged


def test_a_replay_from_the_middle_keeps_devices_that_failed_within_the_window_before() -> None:
    node = next(iter(world().topology.nodes))
    events: dict[int, tuple[ClusterEvent, ...]] = {1: (ClusterEvent(90.0, EventKind.DOWN, node),)}
    cut = windows(3, events=events)
    whole, part = Calm(), Calm()
    run(whole, cut, config=config(ReplayMode.ONLINE))
    start = Start(whole.seen[2], whole.seen[1])
    run(part, cut[2:], start=start, config=config(ReplayMode.ONLINE))
    assert [d.available for d in part.seen[0].devices] == [d.available for d in whole.seen[2].devices]
    assert part.seen[0].changes == whole.seen[2].changes


def test_the_first_plan_of_an_online_run_is_made_without_requests_that_are_yet_to_arrive() -> None:
    spy = Spy()
    run(spy, windows(1), config=config(ReplayMode.ONLINE))
    assert [d.waiting for d in spy.asked[0].demand] == [0]


def test_a_model_that_loses_its_last_replica_within_a_batch_window_is_planned_anew() -> None:
    node = min(world().topology.nodes)
    leaving: dict[int, tuple[ClusterEvent, ...]] = {
        1: (ClusterEvent(60.0, EventKind.PREEMPT, node, notice_s=2.0),)
    }
    result = run(OneNode(), windows(3, 400, events=leaving))
    assert result.stats.lost == 0
    assert result.stats.finished == 1200


def test_a_window_that_was_given_up_leaves_a_data_plane_that_still_serves() -> None:
    class Shrink(Replanner):
        def should_replan(self, obs: Observation, memo: Memo) -> bool:
            return obs.tick == 1

        def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
            full = self._base.plan(obs, budget_s, memo)
            return Plan(full.replicas[4:8] if obs.tick else full.replicas[:4])

    # window 1 ends while replicas drain and load; later ones are small enough
    cut = [*windows(2, 400), *windows(16, 20)[2:]]  # loading takes some ten windows of 3 s
    result = run(Shrink(), cut, config=config(stuck_after_s=3.0), solve_clock=Clock(0.3))
    assert result.windows[1].stats.lost > 0
    assert all(w.stats.lost == 0 for w in result.windows[13:])


def test_giving_up_on_requests_never_lowers_the_objective() -> None:
    nothing = Quantiles()
    lost = ServingStats(0, 0, 400, 0, 0, nothing, nothing, nothing, 0, 0, 0, 0)
    served = ServingStats(400, 0, 0, 1, 1, nothing, nothing, nothing, 400, 0, 0, 0)
    gone = WindowResult(0, 0.0, 0.0, 0.0, 0.0, 0.0, False, "x", EMPTY_PLAN, lost, Resources())
    done = WindowResult(0, 5.0, 5.0, 0.0, 0.0, 0.0, False, "x", EMPTY_PLAN, served, Resources())
    assert window_value(gone, Objective.TIME) > window_value(done, Objective.TIME)


@pytest.mark.parametrize("warm_start", [True, False])
def test_a_plan_that_does_not_fit_its_slowest_devices_is_a_fault_and_not_a_crash(warm_start: bool) -> None:
    mixed = build_world(WorldSpec("mixed-64", (LARGE,)))
    devices = ("h100-0/gpu0", "l40s-0/gpu0")

    class Mixed(Replanner):
        def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
            return Plan((ReplicaSpec(LARGE, devices, 1, 2),))

    cut = [
        Window(
            i, i * 60.0, (i + 1) * 60.0, [Request(100 * i + j, i * 60.0, LARGE, 300, 50) for j in range(9)]
        )
        for i in range(2)
    ]
    settings = config(warm_start=warm_start)
    result = replay(mixed, Mixed(), load_baseline("least_loaded"), cut, settings)
    assert result.faults.infeasible > 0
    assert result.stats.finished == 18


def test_a_model_that_no_devices_are_left_for_is_no_fault_of_the_plan() -> None:
    obs = observation()
    left = observation(devices=obs.devices[:1], options=tuple(o for o in obs.options if o.tp == 2))
    assert plan_problems(EMPTY_PLAN, left) == []


def test_a_forced_tick_is_decided_the_same_again() -> None:
    obs, memo = observation(), Memo()
    policy = ScriptedPolicy()
    before = dict(memo)
    policy.should_replan(obs, memo)  # as the controller does: asked first, then forced
    plan = policy.plan(obs, 2.0, memo)
    decision = Decision(0, policy.digest, obs, before, dict(memo), True, True, plan, 0.0)
    assert replay_decision(decision, ScriptedPolicy(), budget_s=2.0) == []
