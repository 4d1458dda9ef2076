"""The controller over the real twin, on a small cluster and on virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from loop.compose.replay import ReplayConfig, Start, replay
from loop.compose.world import InfeasibleModelError, World, WorldSpec, build_world
from loop.contracts import (
    ClusterEvent,
    EventKind,
    Memo,
    Observation,
    Plan,
    Policy,
    ReplayMode,
    Request,
    RunResult,
    Slo,
    Window,
    WindowResult,
)
from loop.controller import ControllerConfig
from loop.journal import Journal, replay_decision
from strategy.baselines import load_baseline

MODEL = "llama-3.1-8b"


@cache
def world() -> World:
    return build_world(WorldSpec("homogeneous-h100-32", (MODEL,)))


def config(mode: ReplayMode = ReplayMode.BATCH, **changes: object) -> ReplayConfig:
    return ReplayConfig(ControllerConfig(mode=mode, **changes), Slo(), 60.0, 512)  # type: ignore[arg-type]


def windows(
    count: int, requests: int = 40, events: dict[int, tuple[ClusterEvent, ...]] | None = None
) -> list[Window]:
    out = []
    for w in range(count):
        batch = [
            Request(w * 1000 + i, w * 60.0 + i, MODEL, 200 + 37 * i % 900, 20 + 13 * i % 200)
            for i in range(requests)
        ]
        out.append(Window(w, w * 60.0, (w + 1) * 60.0, batch, (events or {}).get(w, ())))
    return out


class Clock:
    """A solve clock that says how long each decision took."""

    def __init__(self, each_s: float) -> None:
        self.now_s, self.each_s = 0.0, each_s

    def __call__(self) -> float:
        self.now_s += self.each_s
        return self.now_s


class Replanner:
    """Round robin that changes its plan at each monitoring point between two layouts."""

    name = digest = "replanner"

    def __init__(self) -> None:
        self._base = load_baseline("round_robin")

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        return obs.tick > 0

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        full = self._base.plan(obs, budget_s, memo)
        return Plan(full.replicas[: -1 - obs.tick % 2], "one or two less")

    def route(self, request: object, replicas: Sequence[object], memo: Memo) -> int:
        return self._base.route(request, replicas, memo)  # type: ignore[arg-type]

    def priority(self, request: object, replica: object, memo: Memo) -> float:
        return self._base.priority(request, replica, memo)  # type: ignore[arg-type]


def run(policy: Policy | None = None, cut: Sequence[Window] | None = None, **options: object) -> RunResult:
    chosen = policy or load_baseline("least_loaded")
    settings = options.pop("config", None) or config()
    return replay(
        world(),
        chosen,
        load_baseline("least_loaded"),
        cut or windows(3),
        settings,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("mode", list(ReplayMode))
def test_every_request_is_served_and_the_parts_add_up(mode: ReplayMode) -> None:
    result = run(config=config(mode))
    assert result.stats.finished == 120
    assert result.stats.lost == result.faults.total == 0
    for w in result.windows:
        assert w.total_s == pytest.approx(w.serving_s + w.solve_s + w.reconfiguration_s)
        assert w.serving_s > 0
    assert result.resources.device_s > 0
    if mode is ReplayMode.ONLINE:
        assert all(w.total_s >= 60.0 - 1e-6 for w in result.windows)


def test_a_run_is_the_same_twice() -> None:
    first, second = (run(Replanner(), solve_clock=Clock(0.3)) for _ in range(2))
    assert first == second


def test_replanning_is_charged_as_solve_and_reconfiguration() -> None:
    calm, busy = run(), run(Replanner(), solve_clock=Clock(0.31))
    assert calm.reconfiguration_s == 0.0
    assert busy.reconfiguration_s > 0.0
    replanned = [w for w in busy.windows if w.replanned]
    assert [w.index for w in replanned] == [1, 2]
    assert all(w.solve_charged_s == pytest.approx(0.35) for w in replanned)  # in quanta of 0.05 s


def test_the_old_plan_serves_while_the_solver_works() -> None:
    slow = run(Replanner(), solve_clock=Clock(30.0))
    assert slow.solve_s == 0.0
    assert slow.stats.lost == 0


def test_losing_all_devices_of_a_plan_forces_a_new_one_and_loses_no_request() -> None:
    class OneNode(Replanner):
        name = digest = "one-node"

        def should_replan(self, obs: Observation, memo: Memo) -> bool:
            return False

        def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
            up = {d.id for d in obs.devices if d.available}
            full = self._base.plan(obs, budget_s, memo)
            nodes = sorted({r.devices[0].split("/")[0] for r in full.replicas if up.issuperset(r.devices)})
            return Plan(tuple(r for r in full.replicas if r.devices[0].startswith(nodes[0] + "/")))

    first_node = next(iter(world().topology.nodes))
    lost = {1: (ClusterEvent(0.0, EventKind.DOWN, first_node),)}
    result = run(OneNode(), windows(3, events=lost))
    assert [w.replanned for w in result.windows] == [False, True, False]
    assert result.stats.finished == 120
    assert result.faults.total == 0


def test_a_cluster_without_devices_ends_the_window_and_counts_the_lost() -> None:
    gone = {1: tuple(ClusterEvent(0.0, EventKind.DOWN, node) for node in world().topology.nodes)}
    result = run(cut=windows(2, events=gone), config=config(stuck_after_s=600.0))
    assert result.stats.finished == 40
    assert result.stats.lost == 40


def test_a_journaled_tick_is_decided_the_same_again(tmp_path: Path) -> None:
    policy = load_baseline("milp_replan")
    lost = {1: (ClusterEvent(0.0, EventKind.DOWN, next(iter(world().topology.nodes))),)}
    with Journal(tmp_path / "j.sqlite", run="test") as journal:
        result = run(policy, windows(3, events=lost), journal=journal)
        decisions = list(journal.decisions())
    assert [d.result for d in decisions] == list(result.windows)
    assert any(d.replanned for d in decisions)
    for decision in decisions:
        assert replay_decision(decision, policy, budget_s=ControllerConfig().budget_s) == []


def test_a_replay_from_the_middle_sees_and_does_what_the_whole_run_did(tmp_path: Path) -> None:
    lost = {2: (ClusterEvent(0.0, EventKind.DOWN, next(iter(world().topology.nodes))),)}
    cut = windows(4, events=lost)
    with Journal(tmp_path / "j.sqlite", run="test") as journal:
        whole = run(None, cut, journal=journal)
        seen = [d.observation for d in journal.decisions()]
    part = run(None, cut[2:], start=Start(seen[2], seen[1]))
    assert [w.plan for w in part.windows] == [w.plan for w in whole.windows[2:]]
    assert [w.replanned for w in part.windows] == [w.replanned for w in whole.windows[2:]]
    for a, b in zip(part.windows, whole.windows[2:], strict=True):
        assert a.total_s == pytest.approx(b.total_s, rel=0.1)  # output lengths are learned afresh


def test_a_source_of_policies_takes_over_at_a_monitoring_point() -> None:
    class Source:
        def __init__(self) -> None:
            self.ended: list[int] = []

        def next_policy(self, obs: Observation) -> Policy | None:
            return load_baseline("round_robin") if obs.tick == 1 else None

        def window_ended(self, window: Window, result: WindowResult, obs: Observation) -> None:
            self.ended.append(obs.tick)

    source = Source()
    result = run(source=source)
    first, then = load_baseline("least_loaded").digest, load_baseline("round_robin").digest
    assert [w.policy for w in result.windows] == [first, then, then]
    assert source.ended == [0, 1, 2]


@pytest.mark.slow
def test_a_model_that_fits_nowhere_is_named() -> None:
    with pytest.raises(InfeasibleModelError, match=r"bloom-176b.*laptop-2"):
        build_world(WorldSpec("laptop-2", ("bloom-176b",)))


def test_faults_of_a_policy_are_counted_and_served_through() -> None:
    class Broken(Replanner):
        name = digest = "broken"

        def route(self, request: object, replicas: Sequence[object], memo: Memo) -> int:
            raise ZeroDivisionError("no idea")

    result = run(Broken())
    assert result.stats.finished == 120
    assert result.faults.errors == 120
    assert "no idea" in result.faults.examples[0]


class Turns:
    """A source that hands over a policy at each tick that it is given for."""

    def __init__(self, policies: dict[int, Policy]) -> None:
        self._policies = policies

    def next_policy(self, obs: Observation) -> Policy | None:
        return self._policies.get(obs.tick)

    def window_ended(self, window: Window, result: WindowResult, obs: Observation) -> None:
        pass


class Counting(Replanner):
    """Counts its monitoring points in its memo."""

    def __init__(self, digest: str) -> None:
        super().__init__()
        self.name = self.digest = digest
        self.counted: list[float] = []

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        memo["n"] = memo.get("n", 0.0) + 1.0
        self.counted.append(memo["n"])
        return False


def test_a_policy_that_comes_back_finds_its_memo_and_another_one_begins_with_none() -> None:
    first, other = Counting("first"), Counting("other")
    run(first, windows(5), source=Turns({2: other, 3: first}))
    assert first.counted == [1.0, 2.0, 3.0, 4.0]
    assert other.counted == [1.0]


def test_a_kill_between_two_monitoring_points_decides_the_rescue() -> None:
    class Killed(Turns):
        def __init__(self) -> None:
            super().__init__({})
            self.asked: list[int] = []

        def urgent_policy(self, obs: Observation) -> Policy | None:
            self.asked.append(obs.tick)
            return load_baseline("round_robin")

    class OneNode(Replanner):
        name = digest = "one-node"

        def should_replan(self, obs: Observation, memo: Memo) -> bool:
            return False

        def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
            assert obs.tick == 0, "asked again, although the kill switch was pulled"
            full = self._base.plan(obs, budget_s, memo)
            return Plan(tuple(r for r in full.replicas if r.devices[0].startswith(first_node + "/")))

    first_node = min(world().topology.nodes)
    leaving: dict[int, tuple[ClusterEvent, ...]] = {
        1: (ClusterEvent(60.0, EventKind.PREEMPT, first_node, notice_s=2.0),)
    }
    source = Killed()
    result = run(OneNode(), windows(3, 400, events=leaving), source=source)
    assert source.asked == [1]
    assert result.stats.finished == 1200
    assert result.windows[2].policy == load_baseline("round_robin").digest
    assert result.faults.total == sum(w.faults.total for w in result.windows) == 0
