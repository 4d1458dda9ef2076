"""What every policy must do, whoever wrote it: run one through `PolicyConformance` by subclassing.

    class TestMine(PolicyConformance):
        policy = load_mine()

Plans must be feasible, answers deterministic and pure, no request may starve, and time is bounded.
"""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loop.contracts import (
    EMPTY_PLAN,
    Memo,
    Observation,
    Plan,
    Policy,
    ReplayMode,
    ReplicaView,
    Role,
)
from tests.strategy import builders as b

BUDGET_S = 2.0
USUAL_S = 2e-3
"""CPU seconds of `slowness`'s loop on a usual machine."""


def slowness() -> float:
    """How many times slower than a usual machine this one computes now; at least 1."""
    took = []
    for _ in range(5):
        started, total = time.thread_time(), 0
        for i in range(50_000):
            total += i & 7
        took.append(time.thread_time() - started)
    return max(1.0, min(took) / USUAL_S)


def infeasibilities(plan: Plan, obs: Observation) -> list[str]:
    """What is wrong with a plan, in words."""
    found = []
    devices = {d.id: d for d in obs.devices}
    catalogue = {(o.model, o.kind, o.tp, o.pp) for o in obs.options}
    uses = Counter(device for spec in plan.replicas for device in spec.devices)
    found += [f"{device} is used {count} times" for device, count in uses.items() if count > 1]
    found += [f"{device} does not exist" for device in uses if device not in devices]
    found += [
        f"{device} is not available" for device in uses if device in devices and not devices[device].available
    ]
    for spec in plan.replicas:
        if len(spec.devices) != spec.tp * spec.pp:
            found.append(f"{spec} has {len(spec.devices)} devices")
        kinds = {devices[d].kind for d in spec.devices if d in devices}
        if not any((spec.model, kind, spec.tp, spec.pp) in catalogue for kind in kinds):
            found.append(f"{spec} runs no option")
        stages = [spec.devices[at : at + spec.tp] for at in range(0, len(spec.devices), spec.tp)]
        if any(len({devices[d].node for d in stage if d in devices}) > 1 for stage in stages):
            found.append(f"{spec} has tensor parallelism over nodes")
        if spec.max_num_seqs < 1 or spec.max_num_batched_tokens < 1:
            found.append(f"{spec} has no batch")
    for model in {spec.model for spec in plan.replicas}:
        roles = {spec.role for spec in plan.replicas if spec.model == model}
        if Role.MIXED not in roles and roles != {Role.PREFILL, Role.DECODE}:
            found.append(f"{model} has only {roles}")
    return found


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """Clusters of every shape, in good health and bad, before and after a first plan."""
    kinds = [*b.KINDS, "unknown"]
    nodes = draw(st.lists(st.tuples(st.sampled_from(kinds), st.integers(1, 8)), max_size=6))
    models = draw(st.sampled_from([("tiny",), ("large",), ("large", "tiny")]))
    lengths = st.floats(0.0, 9000.0, allow_nan=False)
    demands = [
        b.busy(m, draw(st.integers(0, 5000)), draw(lengths), draw(lengths))
        for m in models
        if draw(st.integers(0, 4))  # sometimes nothing is known of a model
    ]
    mode = draw(st.sampled_from(list(ReplayMode)))
    obs = b.observation(nodes, models, demands, mode)
    devices = tuple(
        replace(
            device,
            available=draw(st.integers(0, 5)) > 0,
            speed=draw(st.sampled_from([1.0, 1.0, 0.5])),
            leaving_in_s=draw(st.sampled_from([None, None, None, 30.0])),
        )
        for device in obs.devices
    )
    return replace(obs, devices=devices, ticks_since_replan=draw(st.integers(0, 20)))


def decide(policy: Policy, obs: Observation, memo: Memo) -> Plan:
    """Both answers of a monitoring point."""
    policy.should_replan(obs, memo)
    return policy.plan(obs, BUDGET_S, memo)


def copied(memo: Memo) -> Memo:
    """An independent memo with the same content."""
    clone = Memo()
    for key, value in memo.items():
        clone[key] = value
    return clone


def views(policy: Policy, count: int = 8) -> tuple[ReplicaView, ...]:
    """Replicas of one model, two speeds, idle."""
    return tuple(
        b.replica(
            i,
            kind="big" if i % 2 else "mid",
            prefill_tokens_per_s=20_000.0 if i % 2 else 10_000.0,
            decode_tokens_per_s=2_000.0 if i % 2 else 1_000.0,
        )
        for i in range(count)
    )


class PolicyConformance:
    """The suite; `policy` is what it judges."""

    policy: Policy

    @given(obs=observations())
    @settings(
        max_examples=8,
        deadline=None,
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    def test_plans_are_feasible_pure_and_repeatable_on_any_cluster(self, obs: Observation) -> None:
        memo, again = Memo(), Memo()
        before = copy.deepcopy(obs)
        plan = decide(self.policy, obs, memo)
        assert infeasibilities(plan, obs) == []
        assert obs == before, "the observation was changed"
        assert decide(self.policy, obs, again) == plan
        assert again == memo
        assert len(memo) <= Memo.LIMIT

    @given(obs=observations(), lost=st.sets(st.integers(0, 47), max_size=12))
    @settings(
        max_examples=8,
        deadline=None,
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    def test_plans_stay_feasible_when_devices_leave_and_return(
        self, obs: Observation, lost: set[int]
    ) -> None:
        memo = Memo()
        first = decide(self.policy, obs, memo)
        devices = tuple(
            replace(device, available=not device.available if i in lost else device.available)
            for i, device in enumerate(obs.devices)
        )
        up = {device.id for device in devices if device.available}
        alive = Plan(tuple(s for s in first.replicas if up.issuperset(s.devices)))
        after = replace(b.serving(obs, alive), devices=devices, changes=("down:n00",))
        assert infeasibilities(decide(self.policy, after, memo), after) == []

    def test_serves_every_model_that_has_an_option(self) -> None:
        for mode in ReplayMode:
            obs = b.observation(
                (("big", 8), ("big", 8), ("mid", 8), ("small", 4)), ("large", "tiny"), mode=mode
            )
            plan = decide(self.policy, obs, Memo())
            assert {spec.model for spec in plan.replicas} == {"large", "tiny"}

    def test_batch_leaves_no_device_idle_that_could_help(self) -> None:
        obs = b.observation((("big", 8), ("mid", 8), ("small", 4)), ("tiny",))
        plan = decide(self.policy, obs, Memo())
        assert len({d for s in plan.replicas for d in s.devices}) == 20

    def test_replans_when_nothing_serves(self) -> None:
        assert self.policy.should_replan(b.observation(), Memo())

    def test_settles_when_nothing_changes(self) -> None:
        """The second plan for the same world keeps every replica of the first."""
        obs, memo = b.observation(), Memo()
        first = decide(self.policy, obs, memo)
        settled = replace(b.serving(obs, first), ticks_since_replan=1)
        again = decide(self.policy, settled, memo)
        assert {s.key for s in again.replicas} == {s.key for s in first.replicas}

    def test_gives_up_a_lost_replica_and_keeps_the_others(self) -> None:
        obs, memo = b.observation(), Memo()
        first = decide(self.policy, obs, memo)
        dead = first.replicas[0].devices[0]
        devices = tuple(replace(d, available=d.id != dead) for d in obs.devices)
        alive = Plan(tuple(s for s in first.replicas if dead not in s.devices))
        after = replace(b.serving(obs, alive), devices=devices, changes=(f"down:{dead}",))
        plan = decide(self.policy, after, memo)
        assert infeasibilities(plan, after) == []
        kept = {s.key for s in alive.replicas} & {s.key for s in plan.replicas}
        assert len(kept) >= len(alive.replicas) * 2 / 3

    def test_uses_devices_that_come_back(self) -> None:
        obs, memo = b.observation((("big", 8), ("mid", 8))), Memo()
        without = replace(obs, devices=tuple(replace(d, available=d.node != "n01") for d in obs.devices))
        first = decide(self.policy, without, memo)
        assert not any(d.startswith("n01") for s in first.replicas for d in s.devices)
        back = replace(b.serving(obs, first), changes=("up:n01",), ticks_since_replan=1)
        assert self.policy.should_replan(back, memo)
        plan = self.policy.plan(back, BUDGET_S, memo)
        assert any(d.startswith("n01") for s in plan.replicas for d in s.devices)

    def test_leaves_spot_devices_before_they_are_reclaimed(self) -> None:
        obs, memo = b.observation((("big", 8), ("mid", 8))), Memo()
        first = decide(self.policy, obs, memo)
        devices = tuple(replace(d, leaving_in_s=30.0 if d.node == "n01" else None) for d in obs.devices)
        warned = replace(b.serving(obs, first), devices=devices, changes=("preempt:n01",))
        assert self.policy.should_replan(warned, memo)
        plan = self.policy.plan(warned, BUDGET_S, memo)
        assert not any(d.startswith("n01") for s in plan.replicas for d in s.devices)

    @pytest.mark.parametrize("nodes", [(), (("small", 1),), (("big", 1),), (("unknown", 8),)])
    def test_degenerate_clusters(self, nodes: tuple[tuple[str, int], ...]) -> None:
        for mode in ReplayMode:
            for demands in ([], None, [b.demand("tiny")]):
                obs = b.observation(nodes, ("tiny",), demands, mode)
                assert infeasibilities(decide(self.policy, obs, Memo()), obs) == []

    def test_everything_down(self) -> None:
        obs, memo = b.observation(), Memo()
        first = decide(self.policy, obs, memo)
        dead = replace(
            b.serving(obs, first),
            devices=tuple(replace(d, available=False) for d in obs.devices),
            plan=EMPTY_PLAN,
            replicas=(),
        )
        assert decide(self.policy, dead, memo).replicas == ()

    def test_plan_keeps_to_its_budget(self) -> None:
        nodes = [("big", 8)] * 2 + [("mid", 8)] * 3 + [("small", 4)] * 6
        obs = b.observation(nodes, ("large", "tiny"))
        started = time.thread_time()  # whatever else the machine does is not the policy's
        decide(self.policy, obs, Memo())
        assert time.thread_time() - started < BUDGET_S * slowness()

    def test_routing_is_quick_on_64_replicas(self) -> None:
        memo, replicas, job = Memo(), views(self.policy, 64), b.request()
        took = []
        for i in range(50):
            started = time.thread_time()
            self.policy.route(job._replace(id=i), replicas, memo)
            took.append(time.thread_time() - started)
        assert sorted(took)[len(took) // 2] < 1e-3 * slowness()

    @given(
        counts=st.lists(
            st.tuples(*[st.integers(0, 500)] * 2, st.integers(0, 300_000)), min_size=1, max_size=12
        ),
        tokens=st.integers(1, 200_000),
        output=st.floats(0.0, 10_000.0),
        ready=st.sampled_from([0.0, 45.0, 1e4]),
        role=st.sampled_from(list(Role)),
    )
    @settings(
        max_examples=12,
        deadline=None,
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    def test_routes_are_valid_pure_and_repeatable(
        self, counts: list[tuple[int, int, int]], tokens: int, output: float, ready: float, role: Role
    ) -> None:
        replicas = tuple(
            b.replica(
                i,
                role=role,
                running=running,
                waiting=waiting,
                waiting_tokens=held,
                kv_tokens=min(held, 100_000),
                outstanding_tokens=float(held),
                ready_in_s=ready,
            )
            for i, (running, waiting, held) in enumerate(counts)
        )
        cached = tuple(min(tokens, 512 * i) for i in range(len(replicas)))
        job = b.request(input_tokens=tokens, predicted_output_tokens=output, cached_tokens=cached)
        memo, again = Memo(), Memo()
        index = self.policy.route(job, replicas, memo)
        assert 0 <= index < len(replicas)
        assert self.policy.route(job, replicas, again) == index
        assert memo == again
        value = self.policy.priority(job, replicas[index], memo)
        assert not math.isnan(value)
        assert value == self.policy.priority(job, replicas[index], copied(memo))

    def test_speed_zero_does_not_break_routing(self) -> None:
        stuck = b.replica(0, prefill_tokens_per_s=0.0, decode_tokens_per_s=0.0, decode_step_s=0.0, speed=0.0)
        assert self.policy.route(b.request(), (stuck, b.replica(1)), Memo()) in (0, 1)
        assert self.policy.route(b.request(), (stuck,), Memo()) == 0

    def test_spreads_requests_over_all_replicas(self) -> None:
        replicas, memo = list(views(self.policy)), Memo()
        given_to: Counter[int] = Counter()
        for i in range(400):
            job = b.request(i)
            index = self.policy.route(job, replicas, memo)
            replicas[index] = b.loaded(replicas[index], job)
            given_to[index] += 1
        assert set(given_to) == set(range(len(replicas)))
        assert max(given_to.values()) < 4 * min(given_to.values()), "fast ones are only twice as fast"

    def test_prefers_replicas_that_serve_over_those_that_start(self) -> None:
        replicas, memo = list(views(self.policy, 4)), Memo()
        replicas[1] = replicas[1]._replace(ready_in_s=600.0)
        chosen = []
        for i in range(8):
            index = self.policy.route(b.request(i), replicas, memo)
            replicas[index] = b.loaded(replicas[index], b.request(i))
            chosen.append(index)
        assert 1 not in chosen

    def test_does_not_send_a_request_where_it_cannot_fit(self) -> None:
        replicas, memo = list(views(self.policy, 4)), Memo()
        replicas = [r._replace(kv_capacity_tokens=3000) for r in replicas[:3]] + replicas[3:]
        replicas[3] = replicas[3]._replace(waiting=50, waiting_tokens=50_000, outstanding_tokens=10_000.0)
        for i in range(8):
            assert self.policy.route(b.request(i, input_tokens=5000), replicas, memo) == 3

    def test_no_request_starves_behind_those_that_come_later(self) -> None:
        """Long requests wait while more short ones arrive than are served: their turn comes all the same."""
        memo, at = Memo(), b.replica()
        queue: list[tuple[float, int]] = []
        waiting = set()
        for second in range(0, 40_000, 20):
            now = float(second)
            short = b.request(second, arrival_s=now, now_s=now, input_tokens=50, predicted_output_tokens=5.0)
            jobs = [short, short._replace(id=second + 1)]
            if second < 200:
                jobs.append(
                    short._replace(id=-1 - second, input_tokens=20_000, predicted_output_tokens=2_000.0)
                )
                waiting.add(-1 - second)
            queue += [(self.policy.priority(job, at, memo), job.id) for job in jobs]
            first = min(queue)
            queue.remove(first)
            waiting.discard(first[1])
        assert not waiting, "long requests were never the first"
