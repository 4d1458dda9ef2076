"""The live layer, monitoring point by monitoring point, with small scripted policies."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loop.contracts import (
    EMPTY_PLAN,
    BatchedPolicy,
    Finish,
    Memo,
    Observation,
    Plan,
    Policy,
    PolicyError,
    PolicyFaults,
    PolicySource,
    PolicyTimeout,
    Quantiles,
    RemotePolicy,
    RequestRecord,
    Resources,
    ServingStats,
    WindowResult,
)
from loop.contracts.live import CommandKind, CommandStatus, LivePort, Stage
from loop.guard import GuardedPolicy, plan_problems
from strategy.live import CanaryKind, Live, LiveConfig, LiveStore
from strategy.live.arms import TrafficCanary, in_share
from strategy.live.shadow import ShadowRecorder
from tests.loop.builders import ScriptedPolicy, observation, replica_view, request_view, spec

NOTHING = Quantiles()
STATS = ServingStats(0, 0, 0, 0, 0, NOTHING, NOTHING, NOTHING, 0, 0, 0, 0)
RESULT = WindowResult(0, 10.0, 10.0, 0.0, 0.0, 0.0, False, "", EMPTY_PLAN, STATS, Resources())
VIEWS = (replica_view(), replica_view(id=1))


def source(name: str) -> PolicySource:
    return PolicySource(name, f"# {name}", name)


FIRST, BETTER, OTHER = source("first"), source("better"), source("other")


class Loop:
    """A controller of few words: it asks for a policy, and asks that policy as a data plane would."""

    def __init__(
        self,
        config: LiveConfig,
        *,
        store: LiveStore | None = None,
        answers: dict[str, dict[str, Any]] | None = None,
        broken: Sequence[str] = (),
    ) -> None:
        self.loaded: list[str] = []
        self._closed: list[str] = []
        self.answers = answers or {}
        self.broken = broken
        self.live = Live(
            FIRST, self._load, config, guard=GuardedPolicy, check=plan_problems, baseline=FIRST, store=store
        )
        self.guarded = GuardedPolicy(ScriptedPolicy("first"), ScriptedPolicy("fallback"))
        self.memo = Memo()
        self.tick = 0
        self.requests = 0

    def _load(self, policy: PolicySource) -> Policy:
        if policy.name in self.broken:
            raise PolicyError("it does not load")
        self.loaded.append(policy.name)
        loaded = ScriptedPolicy(policy.digest, **self.answers.get(policy.name, {}))
        loaded.close = lambda: self._closed.append(policy.name)  # type: ignore[attr-defined]
        return loaded

    @property
    def closed(self) -> list[str]:
        """Policies that were ended, once the thread of the shadows has come to it."""
        with suppress(RuntimeError):  # the loop is closed: there is no thread any more
            self.live._pool.submit(lambda: None).result(300.0)
        return self._closed

    def window(self, objective: float = 10.0, requests: int = 40) -> str:
        """One window; the digest of who decided it."""
        obs = observation(tick=self.tick, now_s=10.0 * self.tick)
        policy = self.live.next_policy(obs)
        if policy is not None:
            self.guarded = GuardedPolicy(policy, ScriptedPolicy("fallback"))
        before = self.guarded.faults
        if self.guarded.should_replan(obs, self.memo):
            self.guarded.plan(obs, 2.0, self.memo)
        for _ in range(requests):
            self._request(obs)
        total = self.guarded.faults.total - before.total
        faults = PolicyFaults(errors=total, examples=self.guarded.faults.examples if total else ())
        result = replace(RESULT, index=self.tick, policy=self.guarded.digest, faults=faults)
        self.live.window_ended(result, objective)
        self.tick += 1
        return self.guarded.digest

    def _request(self, obs: Observation) -> None:
        """Routed, and done: replica 1 takes half as long as replica 0."""
        number, self.requests = self.requests, self.requests + 1
        view = request_view(id=number, arrival_s=obs.now_s, now_s=obs.now_s)
        index, _ = self.guarded.dispatch(view, VIEWS, self.memo)
        took_s = 4.0 * (0.5 if index == 1 else 1.0) * (1.0 + 0.1 * (number % 3))
        done = obs.now_s + took_s
        self.live.finished(
            RequestRecord(
                number,
                "m",
                Finish.OK,
                obs.now_s,
                obs.now_s,
                obs.now_s,
                done - 1,
                done,
                100,
                20,
                0,
                index,
                0,
                0,
            )
        )

    def stages(self) -> list[tuple[str, Stage | None]]:
        return [(r.policy, r.after) for r in self.live.take_records() if r.kind == "stage"]


def shadow_then(canary: CanaryKind, **changes: Any) -> LiveConfig:
    base = LiveConfig(shadow_windows=1, shadow_share=0.5, shadow_late_s=None, canary=canary)
    return replace(base, **changes)


def test_the_live_layer_is_what_the_loop_asks_for() -> None:
    live: LivePort = Loop(LiveConfig.immediate()).live
    assert live.champion == FIRST


def test_what_serves_during_a_trial_is_a_policy_like_any_other() -> None:
    champion, challenger = ScriptedPolicy("a"), ScriptedPolicy("b", route=1)
    canary = TrafficCanary(champion, challenger, share=1.0, guard=GuardedPolicy, routed=lambda *_: None)
    for policy in (ShadowRecorder(champion, "b", LiveConfig()), canary):
        assert isinstance(policy, BatchedPolicy)
        assert isinstance(policy, RemotePolicy)
        assert policy.digest == "a"
        assert policy.plan(observation(), 2.0, Memo()) == champion.plan(observation(), 2.0, Memo())


def test_at_once_a_proposal_serves_from_the_next_monitoring_point_on() -> None:
    loop = Loop(LiveConfig.immediate())
    assert loop.window() == "first"
    assert loop.live.propose(BETTER, "proven", 0.1) == ""
    assert loop.window() == "better"
    assert loop.stages() == [("better", Stage.PROMOTED)]
    assert [p.name for p in loop.live.served] == ["first", "better"]


def test_a_canary_by_traffic_shares_the_requests_and_is_promoted_when_it_is_faster() -> None:
    config = shadow_then(CanaryKind.TRAFFIC, canary_share=0.3)
    loop = Loop(config, answers={"better": {"route": 1}})
    loop.window()
    loop.live.propose(BETTER, "proven")
    assert [loop.window() for _ in range(3)] == ["first"] * 3  # shadow, then canary: the champion plans
    routed = [in_share(i, 0.3, "better") for i in range(2000)]
    assert 0.25 < sum(routed) / 2000 < 0.35
    for _ in range(6):
        loop.window(requests=120)
    assert loop.stages() == [
        ("better", Stage.SHADOW),
        ("better", Stage.CANARY),
        ("better", Stage.PROMOTED),
    ]
    assert loop.live.champion == BETTER


def test_a_canary_by_traffic_that_is_slower_is_refused_and_banned_for_a_while() -> None:
    config = shadow_then(CanaryKind.TRAFFIC, canary_share=0.5, cooldown_windows=3)
    loop = Loop(config, answers={"better": {"route": 0}, "first": {"route": 1}})
    loop.window()
    loop.live.propose(BETTER, "proven")
    while loop.live.state.challenger is not None or loop.tick < 3:
        loop.window(requests=120)
    assert loop.live.champion == FIRST
    assert "banned" in loop.live.propose(BETTER, "proven again")
    for _ in range(3):
        loop.window()
    assert loop.live.propose(BETTER, "proven again") == ""


def test_requests_of_a_canary_that_fails_are_answered_by_the_champion_at_once() -> None:
    config = shadow_then(CanaryKind.TRAFFIC, shadow_windows=0, canary_share=0.5)
    loop = Loop(config, answers={"better": {"route": PolicyTimeout("50 ms")}})
    loop.live.propose(BETTER, "proven")
    assert loop.window() == "first"
    assert loop.guarded.faults.timeouts > 5
    loop.window()
    (refused,) = [r for r in loop.live.take_records() if r.after is Stage.REFUSED]
    assert "the champion had to answer" in refused.reason
    assert "50 ms" in refused.reason
    assert loop.live.propose(BETTER, "again") == "better failed before, and is banned"


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({"route": ZeroDivisionError("no idea")}, "no idea"),
        ({"route": 7}, "route returned 7 for 2 replicas"),
        ({"priority": float("nan")}, "priority returned nan"),
        ({"should_replan": True, "plan": Plan((spec("n9/gpu9"),))}, "unknown device"),
        ({"route": PolicyTimeout("50 ms")}, "came too late"),
    ],
)
def test_whoever_fails_in_shadow_never_touches_traffic(answers: dict[str, Any], why: str) -> None:
    loop = Loop(shadow_then(CanaryKind.TRAFFIC), answers={"better": answers})
    loop.window()
    loop.live.propose(BETTER, "proven")
    loop.window()
    assert loop.guarded.faults.total == 0
    loop.window()
    (refused,) = [r for r in loop.live.take_records() if r.after is Stage.REFUSED]
    assert why in refused.reason
    assert {p.name for p in loop.live.served} == {"first"}
    loop.window()
    assert "better" in loop.closed


def test_a_policy_that_a_shadow_still_asks_is_not_ended_under_it() -> None:
    asked, go_on, seen = threading.Event(), threading.Event(), []
    loop = Loop(shadow_then(CanaryKind.TRAFFIC, shadow_windows=9))
    loop.live._waits = False
    loop.live.propose(BETTER, "try it")
    loop.window(requests=0)
    better = loop.live._roster.get(BETTER)

    def slow(*_: object) -> bool:
        asked.set()
        assert go_on.wait(300.0)
        seen.append("better" in loop._closed)
        return False

    better.should_replan = slow  # type: ignore[method-assign, assignment]
    loop.window(requests=0)
    assert asked.wait(300.0)
    loop.live.withdraw("for no reason")
    loop.window(requests=0)
    loop.window(requests=0)
    go_on.set()
    assert loop.closed == ["better"]
    assert seen[0] is False


def test_a_shadow_is_asked_a_bounded_sample_after_the_champion_has_answered() -> None:
    asked: list[int] = []

    class Counting(ScriptedPolicy):
        def route(self, request: Any, replicas: Any, memo: Memo) -> int:
            asked.append(request.id)
            return 0

    recorder = ShadowRecorder(ScriptedPolicy("a"), "b", LiveConfig(shadow_share=0.5, shadow_requests=20))
    memo = Memo()
    for i in range(500):
        recorder.dispatch(request_view(id=i), VIEWS, memo)
    points, requests = recorder.take()
    assert (points, len(requests)) == ([], 20)
    assert asked == []
    assert memo == {}


def test_a_canary_by_windows_decides_whole_windows_and_is_compared_with_the_champion() -> None:
    config = shadow_then(
        CanaryKind.WINDOWS, shadow_windows=0, canary_share=0.5, canary_max_windows=6, confidence=0.9
    )
    loop = Loop(config, answers={"better": {"route": 1}})
    loop.window(10.0)
    loop.live.propose(BETTER, "proven")
    who: list[str] = []
    while loop.live.champion == FIRST and loop.tick < 40:
        who.append(loop.window(9.9 if len(who) % 2 == 0 else 10.0))
        question = loop.live.question()
        if question is not None and question.stage is Stage.CANARY:
            values = {"first": [8.0] * len(question.windows), "better": [7.0] * len(question.windows)}
            loop.live.judged(question, values)
    assert who[:4] == ["better", "first", "better", "first"]
    # the twin is 20 % too fast (8 for 10), so the champion would have taken 10 where the challenger took 9.9
    promoted = [r for r in loop.live.take_records() if r.after is Stage.PROMOTED]
    assert promoted[0].evidence["ratio"] == pytest.approx(0.99)
    assert "nothing spoke against it" in promoted[0].reason


def test_a_champion_that_makes_faults_goes_and_the_budget_freezes_evolution() -> None:
    config = replace(LiveConfig.immediate(), error_budget=2.0, budget_recovery_windows=None)
    bad = {name: {"route": ZeroDivisionError("live only")} for name in ("better", "other")}
    loop = Loop(config, answers=bad)
    loop.window()
    for policy in (BETTER, OTHER):
        assert loop.live.propose(policy, "proven") == ""
        assert loop.window() == policy.digest
        assert loop.window() == "first"
    assert loop.live.state.frozen
    assert not loop.live.evolving
    assert "budget" in loop.live.propose(source("third"), "proven")
    told = [r for r in loop.live.take_records() if r.kind == "budget"]
    assert "evolution is frozen" in told[0].reason


def test_the_error_budget_recovers_window_by_window() -> None:
    config = replace(LiveConfig.immediate(), error_budget=1.0, budget_recovery_windows=4)
    loop = Loop(config, answers={"better": {"route": ZeroDivisionError("x")}})
    loop.window()
    loop.live.propose(BETTER, "proven")
    loop.window()
    loop.window()
    frozen = [loop.live.evolving]
    for _ in range(5):
        loop.window()
        frozen.append(loop.live.evolving)
    assert frozen == [False, False, False, False, True, True]


def test_a_champion_that_disappoints_goes_back_and_what_waits_goes_with_it() -> None:
    loop = Loop(replace(LiveConfig.immediate(), cooldown_windows=5))
    loop.window()
    loop.live.propose(BETTER, "proven")
    loop.window()
    assert loop.live.question() is None  # one window is not enough
    loop.window()
    question = loop.live.question()
    assert question is not None
    assert ([p.name for p in question.policies], question.windows) == (["better", "first"], (1, 2))
    values = {"better": [10.0, 10.0], "first": [9.0, 9.5]}
    assert loop.live.disappoints(question, values)
    loop.live.judged(question, values)
    loop.live.propose(OTHER, "proven against better")
    assert loop.window() == "first"
    stages = loop.stages()
    assert ("better", Stage.ROLLED_BACK) in stages
    assert ("other", Stage.REFUSED) in stages


def test_a_challenger_or_predecessor_that_does_not_load_does_not_stop_serving() -> None:
    loop = Loop(LiveConfig.immediate(), broken=("better", "first"))
    loop.window()
    loop.live.propose(BETTER, "proven")
    assert loop.window() == "first"
    assert loop.stages() == [("better", Stage.REFUSED)]


def test_policies_that_serve_no_more_are_ended_once_another_has_taken_over() -> None:
    loop = Loop(LiveConfig.immediate())
    loop.window()
    for policy in (BETTER, OTHER):
        loop.live.propose(policy, "proven")
        loop.window()
    assert loop.closed == []
    loop.window()
    assert loop.closed == ["better"]
    loop.live.close()
    assert loop.closed == ["better", "other"]


# -- operators --------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> LiveStore:
    return LiveStore.begin(tmp_path / "live.sqlite")


def answer(store: LiveStore, number: int) -> tuple[CommandStatus, int | None]:
    command = store.command(number)
    return command.status, command.tick


def test_promote_and_rollback_take_effect_at_the_next_monitoring_point(store: LiveStore) -> None:
    loop = Loop(LiveConfig(), store=store)
    loop.window()
    up = store.order(CommandKind.PROMOTE, BETTER)
    assert answer(store, up) == (CommandStatus.PENDING, None)
    assert loop.window() == "better"
    assert answer(store, up) == (CommandStatus.DONE, 1)
    again = store.order(CommandKind.PROMOTE, BETTER)
    down = store.order(CommandKind.ROLLBACK)
    assert loop.window() == "first"
    assert answer(store, again) == (CommandStatus.REFUSED, 2)
    assert answer(store, down) == (CommandStatus.DONE, 2)
    nothing_left = store.order(CommandKind.ROLLBACK)
    loop.window()
    assert store.command(nothing_left).answer == "first has no predecessor to go back to"


def test_rollback_ends_a_canary_first(store: LiveStore) -> None:
    loop = Loop(shadow_then(CanaryKind.TRAFFIC, shadow_windows=0), store=store)
    loop.window()
    loop.live.propose(BETTER, "proven")
    loop.window()
    assert loop.live.state.challenger_stage is Stage.CANARY
    number = store.order(CommandKind.ROLLBACK)
    loop.window()
    assert "canary of better is over" in store.command(number).answer
    assert loop.live.state.challenger is None


def test_while_pinned_no_policy_changes_whatever_happens(store: LiveStore) -> None:
    loop = Loop(
        LiveConfig.immediate(), store=store, answers={"better": {"route": ZeroDivisionError("live only")}}
    )
    loop.window()
    store.order(CommandKind.PIN, BETTER)
    assert [loop.window() for _ in range(3)] == ["better"] * 3  # its faults are answered one by one
    assert loop.live.propose(OTHER, "proven") == "better is pinned"
    refused = store.order(CommandKind.PROMOTE, OTHER)
    loop.window()
    assert store.command(refused).answer == "better is pinned: `unpin` first"
    store.order(CommandKind.UNPIN)
    assert loop.window() == "first"  # now the watch takes it back


def test_kill_brings_the_baseline_and_rest_until_revive(store: LiveStore) -> None:
    loop = Loop(LiveConfig.immediate(), store=store)
    loop.window()
    loop.live.propose(BETTER, "proven")
    loop.window()
    store.order(CommandKind.KILL)
    assert loop.window() == "first"
    assert not loop.live.evolving
    assert loop.live.propose(OTHER, "proven") == "the kill switch is pulled"
    refused = store.order(CommandKind.PROMOTE, OTHER)
    assert loop.window() == "first"
    assert store.command(refused).answer == "the kill switch is pulled: `revive` first"
    store.order(CommandKind.REVIVE)
    loop.window()
    assert loop.live.evolving
    assert loop.live.propose(OTHER, "proven") == ""
    assert loop.window() == "other"


def test_the_kill_switch_works_between_two_monitoring_points(store: LiveStore) -> None:
    loop = Loop(LiveConfig.immediate(), store=store)
    loop.window()
    loop.live.propose(BETTER, "proven")
    loop.window()
    assert loop.live.urgent_policy(observation(tick=1)) is None
    number = store.order(CommandKind.KILL)
    safe = loop.live.urgent_policy(observation(tick=1))
    assert safe is not None
    assert safe.digest == "first"
    assert answer(store, number) == (CommandStatus.DONE, 1)


def test_a_loop_that_begins_again_goes_on_with_the_champion_of_the_store(store: LiveStore) -> None:
    loop = Loop(shadow_then(CanaryKind.TRAFFIC), store=store)
    loop.window()
    store.order(CommandKind.PROMOTE, BETTER)
    loop.window()
    loop.live.propose(OTHER, "proven")
    loop.window()  # `other` is in shadow when the process dies
    again = Loop(shadow_then(CanaryKind.TRAFFIC), store=LiveStore(store.path))
    assert again.live.champion == BETTER
    assert again.window() == "better"
    assert again.live.state.challenger == OTHER
    down = store.order(CommandKind.ROLLBACK)
    assert again.window() == "first"
    assert answer(store, down)[0] is CommandStatus.DONE


def test_a_stored_champion_that_cannot_be_loaded_any_more_gives_way(store: LiveStore) -> None:
    loop = Loop(LiveConfig.immediate(), store=store)
    loop.window()
    loop.live.propose(BETTER, "proven")
    assert loop.window() == "better"
    again = Loop(LiveConfig.immediate(), store=LiveStore(store.path), broken=("better",))
    assert again.live.champion == BETTER
    assert again.window() == "first"
    assert again.live.champion == FIRST
    assert any("cannot be loaded" in record.reason for record in again.live.take_records())


def test_a_store_that_cannot_be_written_does_not_stop_serving(store: LiveStore) -> None:
    loop = Loop(LiveConfig.immediate(), store=store)
    loop.window()
    store.close()
    loop.live.propose(BETTER, "proven")
    assert loop.window() == "better"
