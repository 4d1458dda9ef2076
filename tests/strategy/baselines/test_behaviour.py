"""What sets each baseline apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from loop.contracts import Demand, Memo, Observation, ReplayMode, Role
from strategy.baselines import load_baseline
from strategy.policy_api import loads, rates
from tests.strategy import builders as b

NODES = (("big", 8), ("mid", 8))


def online(rate_per_s: float, **fields: float) -> Demand:
    return b.demand(
        "tiny", rate_per_s=rate_per_s, finished=100, input_tokens_mean=1000, output_tokens_mean=200, **fields
    )


def capacity_per_s(obs: Observation) -> float:
    (load,) = loads(obs)
    return sum(rates(obs, obs.plan.replicas, load))


class TestThresholdAutoscaler:
    policy = load_baseline("threshold_autoscaler")

    def started(self, rate_per_s: float) -> tuple[Observation, Memo]:
        obs, memo = b.observation(NODES, demands=[online(rate_per_s)], mode=ReplayMode.ONLINE), Memo()
        return replace(b.serving(obs, self.policy.plan(obs, 2.0, memo)), ticks_since_replan=9), memo

    def test_starts_with_what_the_target_needs(self) -> None:
        small, large = (len(self.started(rate)[0].plan.replicas) for rate in (1.0, 60.0))
        assert 1 <= small < large

    def test_rests_inside_its_band_and_grows_above_it(self) -> None:
        obs, memo = self.started(20.0)
        assert not self.policy.should_replan(obs, memo)
        crowd = replace(obs, demand=(online(0.9 * capacity_per_s(obs)),))
        assert self.policy.should_replan(crowd, memo)
        assert len(self.policy.plan(crowd, 2.0, memo).replicas) > len(obs.plan.replicas)

    def test_shrinks_only_after_some_calm(self) -> None:
        obs, memo = self.started(60.0)
        calm = replace(obs, demand=(online(1.0),))
        assert [self.policy.should_replan(calm, memo) for _ in range(3)] == [False, False, True]
        assert 1 <= len(self.policy.plan(calm, 2.0, memo).replicas) < len(obs.plan.replicas)

    def test_grows_when_the_slo_is_missed(self) -> None:
        obs, memo = self.started(20.0)
        bad = replace(obs, demand=(online(20.0, goodput=0.5),))
        assert self.policy.should_replan(bad, memo)
        assert len(self.policy.plan(bad, 2.0, memo).replicas) > len(obs.plan.replicas)

    def test_batch_moves_replicas_to_the_model_that_needs_them(self) -> None:
        obs = b.observation((("big", 8),) * 2, ("large", "tiny"), [b.busy("large", 900), b.busy("tiny", 100)])
        served = b.serving(obs, self.policy.plan(obs, 2.0, Memo()))
        shifted = replace(served, demand=(b.busy("large", 50), b.busy("tiny", 20_000)), ticks_since_replan=5)
        assert self.policy.should_replan(shifted, Memo())

        def devices(plan_of: Observation) -> int:
            return sum(len(s.devices) for s in plan_of.plan.replicas if s.model == "tiny")

        assert devices(b.serving(shifted, self.policy.plan(shifted, 2.0, Memo()))) > devices(served)


class TestStaticDisaggregated:
    policy = load_baseline("static_disaggregated")

    def test_long_prompts_get_more_prefill(self) -> None:
        shares = []
        for inputs, outputs in ((4000.0, 50.0), (200.0, 800.0)):
            obs = b.observation(NODES, demands=[b.busy("tiny", 3000, inputs, outputs)])
            roles = Counter(s.role for s in self.policy.plan(obs, 2.0, Memo()).replicas)
            assert set(roles) == {Role.PREFILL, Role.DECODE}
            shares.append(roles[Role.PREFILL] / roles.total())
        assert shares[0] > shares[1]

    def test_a_single_replica_does_both(self) -> None:
        obs = b.observation((("big", 1),))
        (spec,) = self.policy.plan(obs, 2.0, Memo()).replicas
        assert spec.role is Role.MIXED

    def test_prompts_go_where_the_prompt_queue_is_short(self) -> None:
        busy = b.replica(0, role=Role.PREFILL, waiting_tokens=50_000)
        decoding = b.replica(1, role=Role.PREFILL, outstanding_tokens=1e6)
        assert self.policy.route(b.request(), (busy, decoding), Memo()) == 1


class TestKvAware:
    policy = load_baseline("kv_aware")

    def test_follows_the_prefix_unless_its_replica_is_swamped(self) -> None:
        views = (b.replica(0), b.replica(1))
        job = b.request(input_tokens=8000, cached_tokens=(0, 7680))
        assert self.policy.route(job, views, Memo()) == 1
        swamped = (views[0], views[1]._replace(waiting=200, waiting_tokens=400_000))
        assert self.policy.route(job, swamped, Memo()) == 0


class TestMilpReplan:
    policy = load_baseline("milp_replan")

    def test_replans_when_the_load_moved_and_only_then(self) -> None:
        obs, memo = b.observation(NODES), Memo()
        served = b.serving(obs, self.policy.plan(obs, 2.0, memo))
        assert not self.policy.should_replan(served, memo)
        assert not self.policy.should_replan(replace(served, demand=(b.busy("tiny", 2050),)), memo)
        assert self.policy.should_replan(replace(served, demand=(b.busy("tiny", 3000),)), memo)
        assert self.policy.should_replan(replace(served, changes=("speed:n00/0",)), memo)


class TestPeriodicRebalance:
    policy = load_baseline("periodic_rebalance")

    def test_replans_every_few_windows(self) -> None:
        obs, memo = b.observation(NODES), Memo()
        served = b.serving(obs, self.policy.plan(obs, 2.0, memo))
        asked = [self.policy.should_replan(replace(served, ticks_since_replan=t), memo) for t in range(5)]
        assert asked == [False, False, False, True, True]

    def test_changes_a_layout_that_no_longer_suits(self) -> None:
        obs = b.observation((("big", 8),) * 2, ("large", "tiny"), [b.busy("large", 900), b.busy("tiny", 100)])
        served = b.serving(obs, self.policy.plan(obs, 2.0, Memo()))
        shifted = replace(served, demand=(b.busy("large", 50), b.busy("tiny", 50_000)))
        before, after = (
            sum(len(s.devices) for s in specs if s.model == "tiny")
            for specs in (served.plan.replicas, self.policy.plan(shifted, 2.0, Memo()).replicas)
        )
        assert after > before


class TestRoundRobin:
    policy = load_baseline("round_robin")

    def test_turns_are_in_proportion_to_speed_whatever_the_queues(self) -> None:
        fast = b.replica(0, waiting=500, waiting_tokens=500_000)
        slow = b.replica(1, prefill_tokens_per_s=10_000.0, decode_tokens_per_s=1_000.0)
        memo = Memo()
        turns = Counter(self.policy.route(b.request(i), (fast, slow), memo) for i in range(300))
        assert 1.9 < turns[0] / turns[1] < 2.1
