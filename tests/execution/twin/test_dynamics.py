"""Plans, failures, reclaims, throttling, disaggregation: what happens to replicas, and what it costs."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from execution.twin import PolicyAnswerError, WorldParameters
from loop.contracts import (
    ClusterEvent,
    EventKind,
    Finish,
    Memo,
    Plan,
    PlanError,
    ReplicaView,
    RequestRecord,
    RequestView,
    Role,
)
from tests.execution.twin.audit import audit
from tests.execution.twin.doubles import (
    BASE_S,
    PER_PROMPT_TOKEN_S,
    Bench,
    LeastLoaded,
    Picky,
    RoundRobin,
    request,
    spec,
)
from tests.execution.twin.scenarios import PLANS, Scenario, scenarios
from tests.execution.twin.test_scheduling import decode_s


def event(at_s: float, kind: EventKind, target: str, **more: float) -> ClusterEvent:
    return ClusterEvent(at_s, kind, target, **more)


# -- plans ---------------------------------------------------------------------------------------------------


def test_a_replica_serves_what_waited_for_it_once_it_has_loaded() -> None:
    bench = Bench(world=WorldParameters(start_scale=1.2))
    bench.twin.submit([request(0, 0.0, 100, 1)])
    done = bench.twin.apply(Plan((spec("d0"),)))
    assert (done.started, done.stopped, done.kept, done.expected_s) == (1, 0, 0, 5.0)
    assert bench.twin.run_until_idle(1e9)
    assert bench.record(0).scheduled_s == pytest.approx(6.0)
    snapshot = bench.twin.snapshot()
    assert snapshot.reconfiguration_stall_s == pytest.approx(6.0)
    assert snapshot.resources.device_s == pytest.approx(bench.twin.now_s)
    busy_s = BASE_S + 100 * PER_PROMPT_TOKEN_S
    assert snapshot.resources.joules == pytest.approx(6.0 * 100 + busy_s * 700)
    assert snapshot.resources.usd == pytest.approx(bench.twin.now_s / 1000)


def test_a_replaced_replica_drains_before_its_device_loads_anew() -> None:
    bench = Bench().serving(spec("d0", seqs=1), spec("d1"))
    start_s = bench.twin.now_s
    bench.twin.submit([request(i, start_s, 50, 50) for i in range(4)])  # 0 and 2 on d0, 1 and 3 on d1
    bench.twin.run_until(start_s + 0.1)
    done = bench.twin.apply(Plan((spec("d0", "d4"), spec("d1"))))
    assert (done.started, done.stopped, done.kept) == (1, 1, 1)
    assert done.expected_s > 5.0
    views = bench.twin.snapshot().replicas
    assert [view.id for view in views] == [2, 1]
    assert views[0].ready_in_s == pytest.approx(done.expected_s)
    bench.twin.run_until(start_s + 30.0)
    drained_s = bench.record(0).last_token_s
    assert bench.record(0).replica == 0, "what ran, finished where it was"
    assert bench.record(2).replica != 0, "what waited, was routed anew"
    assert bench.twin.snapshot().replicas[0].ready_in_s == 0.0
    # d0 drained, then both devices loaded; d1 served all the while: two of three planned devices stalled.
    pending_s = max(r.last_token_s for r in bench.records) - (start_s + 0.1)
    loaded_s = drained_s + 5.0 - (start_s + 0.1)
    expected = 5.0 * 0 + min(pending_s, loaded_s) * 2 / 3
    assert bench.twin.snapshot().reconfiguration_stall_s == pytest.approx(expected, rel=1e-6)


def test_limits_change_live() -> None:
    bench = Bench().serving(spec("d0", seqs=1))
    start_s = bench.twin.now_s
    bench.twin.submit([request(i, start_s, 10, 100) for i in range(2)])
    bench.twin.run_until(start_s + 0.1)
    done = bench.twin.apply(Plan((spec("d0", seqs=2),)))
    assert (done.started, done.stopped, done.kept, done.resized, done.expected_s) == (0, 0, 1, 1, 0.0)
    assert bench.twin.run_until_idle(1e9)
    assert bench.record(1).scheduled_s < start_s + 0.1 + decode_s(1, 110)
    assert bench.twin.snapshot().reconfiguration_stall_s == 0.0


def test_a_draining_replica_that_is_wanted_again_keeps_serving() -> None:
    bench = Bench().serving(spec("d0"))
    start_s = bench.twin.now_s
    bench.twin.submit([request(0, start_s, 50, 200)])
    bench.twin.run_until(start_s + 0.1)
    assert bench.twin.apply(Plan((spec("d1"),))).stopped == 1
    back = bench.twin.apply(Plan((spec("d0"),)))
    assert (back.kept, back.started, back.stopped) == (1, 0, 1)
    assert bench.twin.snapshot().replicas[0].id == 0


@pytest.mark.parametrize(
    ("replicas", "reason"),
    [
        ((spec("d0"), spec("d0", "d1")), "d0 belongs to replica 0"),
        ((spec("d99"),), "no device 'd99'"),
        ((spec("d7"),), "d7 is down"),
        ((spec("d0", model="nobody"),), "unknown model"),
        ((spec("d0", model="huge"),), "huge does not fit"),
        ((spec("d0", seqs=0),), "at least 1"),
        ((spec(),), "needs 0 devices|devices"),
    ],
)
def test_an_impossible_plan_changes_nothing(replicas: tuple, reason: str) -> None:
    bench = Bench().serving(spec("d3"))
    bench.twin.inject(event(0.0, EventKind.DOWN, "d7"))
    bench.twin.submit([request(0, bench.twin.now_s, 10, 10)])
    before = bench.twin.snapshot()
    with pytest.raises(PlanError, match=reason):
        bench.twin.apply(Plan((spec("d2"), *replicas) if "d0 belongs" not in reason else replicas))
    assert bench.twin.snapshot() == before


def test_nothing_serves_a_model_without_replicas_until_there_is_one() -> None:
    bench = Bench().serving(spec("d0"))
    bench.twin.submit([request(0, bench.twin.now_s, 10, 3, model="other")])
    assert not bench.twin.run_until_idle(1e9), "stuck"
    assert [b.waiting for b in bench.twin.snapshot().backlog if b.model == "other"] == [1]
    bench.twin.run_until(bench.twin.now_s + 3.0)
    assert bench.twin.snapshot().idle_pending_s == pytest.approx(3.0)
    bench.twin.apply(Plan((spec("d0"), spec("d1", model="other"))))
    assert bench.twin.run_until_idle(1e9)
    assert bench.finishes() == {0: Finish.OK}


# -- the hardware --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["d0", "n0"])
def test_a_failure_sends_its_requests_elsewhere_from_the_start(target: str) -> None:
    bench = Bench().serving(spec("d0"), spec("d4"))
    start_s = bench.twin.now_s
    bench.twin.submit([request(i, start_s, 40, 100) for i in range(4)])
    bench.twin.inject(event(start_s + 0.5, EventKind.DOWN, target))
    assert bench.twin.run_until_idle(1e9)
    assert {r.id: (r.retries, r.replica) for r in bench.records} == {
        0: (1, 1), 1: (0, 1), 2: (1, 1), 3: (0, 1),
    }  # fmt: skip
    assert bench.record(0).queued_s == pytest.approx(start_s + 0.5)
    assert [s.devices for s in bench.twin.snapshot().plan.replicas] == [("d4",)]


def test_a_reclaim_is_announced_and_then_happens_unless_called_off() -> None:
    bench = Bench(world=WorldParameters(notice_scale=0.5)).serving(spec("d0"), spec("d4"))
    start_s = bench.twin.now_s
    bench.twin.inject(event(start_s, EventKind.PREEMPT, "n0", notice_s=4.0))
    bench.twin.run_until(start_s + 0.5)
    leaving = {d.id: d.leaving_in_s for d in bench.twin.snapshot().devices}
    assert leaving["d0"] == pytest.approx(1.5)
    assert leaving["d4"] is None
    bench.twin.inject(event(start_s + 1.0, EventKind.UP, "d1"))
    bench.twin.run_until(start_s + 2.0)
    available = {d.id: d.available for d in bench.twin.snapshot().devices}
    assert (available["d0"], available["d1"], available["d4"]) == (False, True, True)
    assert len(bench.twin.snapshot().replicas) == 1


def test_the_slowest_device_sets_the_pace_from_the_next_iteration_on() -> None:
    bench = Bench().serving(spec("d0"))
    start_s = bench.twin.now_s
    bench.twin.submit([request(0, start_s, 10, 5)])
    bench.twin.inject(event(start_s, EventKind.SPEED, "d0", factor=0.5))
    assert bench.twin.snapshot().replicas[0].speed == 0.5
    assert bench.twin.run_until_idle(1e9)
    assert bench.record(0).first_token_s - start_s == pytest.approx(2 * (BASE_S + 10 * PER_PROMPT_TOKEN_S))


def test_an_event_on_something_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown device or node 'rack9'"):
        Bench().twin.inject(event(0.0, EventKind.DOWN, "rack9"))


# -- prefill and decode apart --------------------------------------------------------------------------------


def disaggregated() -> Bench:
    return Bench().serving(spec("d0", role=Role.PREFILL), spec("d4", role=Role.DECODE))


def test_kv_travels_over_the_topology_one_sequence_at_a_time() -> None:
    bench = disaggregated()
    start_s = bench.twin.now_s
    bench.twin.submit([request(i, start_s, 100, 2) for i in range(2)])
    assert bench.twin.run_until_idle(1e9)
    first_s = start_s + BASE_S + 200 * PER_PROMPT_TOKEN_S
    each_s = 100 * 100 / 1e8
    scale = 1.0 + 0.0137 * 4
    done_s = first_s + each_s + 2e-3 + scale * decode_s(1, 100)
    assert bench.record(0).first_token_s == pytest.approx(first_s)
    assert bench.record(0).last_token_s == pytest.approx(done_s)
    # The second arrives while the first one's only step is under way, and follows it.
    assert bench.record(1).last_token_s == pytest.approx(done_s + scale * decode_s(1, 100))
    assert {r.replica for r in bench.records} == {1}


def test_when_the_decode_replica_dies_others_or_the_prefill_replica_itself_take_over() -> None:
    bench = disaggregated()
    start_s = bench.twin.now_s
    bench.twin.submit([request(0, start_s, 100, 50)])
    bench.twin.inject(event(start_s + 0.1, EventKind.DOWN, "d4"))
    assert bench.twin.run_until_idle(1e9)
    assert (bench.record(0).finish, bench.record(0).retries, bench.record(0).replica) == (Finish.OK, 1, 0)


@pytest.mark.parametrize(("wait_s", "retries"), [(0.0265, 0), (0.5, 1)], ids=["flying", "queued"])
def test_a_decode_replica_cancelled_while_it_loads_gives_back_what_was_sent_to_it(
    wait_s: float, retries: int
) -> None:
    bench = Bench().serving(spec("d0", role=Role.PREFILL))
    start_s = bench.twin.now_s
    bench.twin.apply(Plan((spec("d0", role=Role.PREFILL), spec("d4", role=Role.DECODE))))
    bench.twin.submit([request(i, start_s, 400, 20) for i in range(2)])
    bench.twin.run_until(start_s + wait_s)
    bench.twin.apply(Plan((spec("d0", role=Role.PREFILL),)))
    assert bench.twin.run_until_idle(1e9)
    assert {r.id: (r.finish, r.replica, r.retries) for r in bench.records} == {
        0: (Finish.OK, 0, retries),
        1: (Finish.OK, 0, retries),
    }


# -- policies, forks, bad input ------------------------------------------------------------------------------


class Wrong(RoundRobin):
    def route(self, request: RequestView, replicas: object, memo: Memo) -> int:
        return 7


class Batched(LeastLoaded):
    """Answers both questions in one."""

    def dispatch(
        self, request: RequestView, replicas: tuple[ReplicaView, ...], memo: Memo
    ) -> tuple[int, float]:
        return len(replicas) - 1, 0.0

    def route(self, request: RequestView, replicas: object, memo: Memo) -> int:
        raise AssertionError("dispatch answers for it")


def test_a_batched_policy_is_asked_once() -> None:
    bench = Bench(policy=Batched()).serving(spec("d0"), spec("d1"))
    bench.twin.submit([request(0, 9.0, 10, 3)])
    assert bench.twin.run_until_idle(1e9)
    assert bench.record(0).replica == 1


def test_a_wrong_answer_is_an_error_that_says_so() -> None:
    bench = Bench(policy=Wrong()).serving(spec("d0"))
    bench.twin.submit([request(3, 9.0, 10, 3)])
    with pytest.raises(PolicyAnswerError, match=r"request 3 .* answered 7: not one of 1 replicas"):
        bench.twin.run_until_idle(1e9)


def test_requests_must_ascend_and_ask_for_known_models() -> None:
    bench = Bench().serving(spec("d0"))
    bench.twin.submit([request(0, 9.0, 10, 3), request(1, 8.0, 10, 3)])
    with pytest.raises(ValueError, match=r"request 1 arrives at 8\.0 s"):
        bench.twin.run_until_idle(1e9)
    with pytest.raises(ValueError, match="request 5 asks for model 'x'; known are m, other, huge"):
        Bench().twin.submit([request(5, 0.0, 10, 3, model="x")])


def test_a_fork_goes_its_own_way_and_leaves_the_original_alone() -> None:
    requests = [request(i, 5.0 + 0.05 * i, 60, 40) for i in range(60)]

    def begin() -> Bench:
        bench = Bench(world=WorldParameters(jitter=0.1)).serving(spec("d0"), spec("d1"))
        bench.twin.submit(iter(requests))
        bench.twin.run_until(6.0)
        return bench

    plain = begin()
    assert plain.twin.run_until_idle(1e9)
    bench = begin()
    mine = list(bench.records)
    other: list = []
    same: list = []
    fork = bench.twin.fork(LeastLoaded(), Memo(), other.append)
    copy = bench.twin.fork(RoundRobin(), Memo({"turn": 21.0}), same.append)
    fork.inject(event(6.1, EventKind.DOWN, "d0"))
    assert fork.run_until_idle(1e9)
    assert {r.replica for r in other if r.last_token_s > 6.1} == {1}
    assert bench.records == mine
    assert bench.twin.run_until_idle(1e9)
    assert bench.records == plain.records
    assert copy.run_until_idle(1e9)
    assert mine + same == plain.records


def test_a_sink_may_submit_the_next_request_of_a_closed_loop() -> None:
    bench = Bench(policy=Picky()).serving(spec("d0"))
    seen: list[int] = []

    def sink(record: RequestRecord) -> None:
        seen.append(record.id)
        if record.id < 6:
            # Every other one is refused at the door, while its arrival is being dealt with.
            bench.twin.submit([request(record.id + 1, bench.twin.now_s, 200 if record.id % 2 else 50, 3)])

    bench.twin._gateway.divert(sink)
    bench.twin.submit([request(0, 9.0, 200, 3)])
    assert bench.twin.run_until_idle(1e9)
    assert seen == list(range(7))


def test_close_loses_what_is_left() -> None:
    bench = Bench().serving(spec("d0"))
    start_s = bench.twin.now_s
    bench.twin.submit([request(0, start_s, 10, 3), request(1, start_s, 10, 1000), request(2, 99.0, 10, 3)])
    bench.twin.run_until(start_s + 1.0)
    bench.twin.close()
    assert bench.finishes() == {0: Finish.OK, 1: Finish.LOST, 2: Finish.LOST}


def test_after_close_replicas_load_and_drain_and_serve_what_comes() -> None:
    bench = Bench().serving(spec("d0", seqs=2), spec("d1"))
    twin, start_s = bench.twin, bench.twin.now_s
    hashes = tuple(range(8))
    twin.submit([request(i, start_s, 512, 500, hashes=hashes) for i in range(6)])
    twin.run_until(start_s + 1.0)
    twin.apply(Plan((spec("d0", "d2"), spec("d1"))))  # d0 drains, and then loads together with d2
    twin.submit([request(9, start_s + 1.0, 10, 3, model="other")])  # nobody serves it
    twin.run_until(start_s + 1.5)
    twin.close()
    audit(twin)
    assert set(bench.finishes().values()) == {Finish.LOST}
    assert len(bench.records) == 7
    assert [(b.waiting, b.running) for b in twin.snapshot().backlog] == [(0, 0)] * 3
    assert twin.meter.busy == 0
    assert all((v.running, v.waiting, v.kv_tokens, v.outstanding_tokens) == (0, 0, 0, 0.0)
               for v in twin.snapshot().replicas)  # fmt: skip
    loading, serving = twin.snapshot().replicas
    assert (loading.ready_in_s, serving.ready_in_s) == (5.0, 0.0)  # the drained one let go of d0
    twin.submit([request(20 + i, start_s + 1.5, 512, 50, hashes=hashes) for i in range(4)])
    assert twin.run_until_idle(1e9)
    audit(twin)
    served = {r.id: (r.finish, r.replica) for r in bench.records[7:]}
    assert served == {20 + i: (Finish.OK, (1, 2)[i % 2]) for i in range(4)}
    assert twin.snapshot().replicas[0].ready_in_s == 0.0


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios(), st.integers(1, 60))
def test_close_at_any_time_leaves_a_whole_cluster(scenario: Scenario, tick: int) -> None:
    bench = Bench(leap=bool(tick % 2), kv_capacity_tokens=scenario.kv_capacity_tokens, start_s=0.3)
    twin = bench.twin
    twin.submit(scenario.requests)
    first, last = scenario.plans[0], scenario.plans[-1]
    twin.apply(Plan(PLANS[first[1]]))
    twin.run_until(tick * 0.0731)
    twin.apply(Plan(PLANS[last[1]]))
    twin.run_until(tick * 0.0731 + 0.05)
    twin.close()
    audit(twin)
    assert sorted(r.id for r in bench.records) == [r.id for r in scenario.requests]
    assert twin.meter.busy == twin.meter.pending == 0
    assert len(twin._deployment.replicas) == len(PLANS[last[1]]), "nobody drains any more"
    at_s = max(twin.now_s, scenario.requests[-1].arrival_s)
    twin.run_until(at_s + 0.4)
    assert all(v.ready_in_s == 0.0 for v in twin.snapshot().replicas)
    again = [request(1000 + i, at_s + 0.4, 30, 5) for i in range(5)]
    twin.submit(again)
    assert twin.run_until_idle(1e9) is bool(PLANS[last[1]])
    audit(twin)
    fine = {r.id for r in bench.records if r.finish is Finish.OK}
    assert {r.id for r in again if PLANS[last[1]]} <= fine
    assert twin.meter.busy == 0


def test_predictions_follow_what_has_finished() -> None:
    seen: list[float] = []

    class Watching(RoundRobin):
        def route(self, request: RequestView, replicas: object, memo: Memo) -> int:
            seen.append(request.predicted_output_tokens)
            return 0

    bench = Bench(policy=Watching()).serving(spec("d0"))
    bench.twin.submit([request(i, 9.0 + 5.0 * i, 10, 16) for i in range(3)])
    assert bench.twin.run_until_idle(1e9)
    assert seen == [256.0, (4 * 256 + 16) / 5, (4 * 256 + 32) / 6]
