"""The building blocks of policies: estimates, placing, routing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.contracts import Memo, Plan, ReplayMode
from strategy import policy_api as api
from tests.examples import up_to
from tests.strategy import builders as b

LOAD = api.Load("tiny", 1000.0, 1000.0, 200.0, 400.0)


def opt(kind: str = "big", tp: int = 1, pp: int = 1, model: str = "tiny") -> api.DeploymentOption:
    found = b.option(model, kind, tp, pp)
    assert found is not None
    return found


class TestLoads:
    def test_batch_counts_what_was_released_with_its_true_prompts(self) -> None:
        demand = b.demand(
            "tiny", waiting=100, waiting_input_tokens=50_000, rate_per_s=9.0, input_tokens_mean=9.0
        )
        (load,) = api.loads(b.observation(demands=[demand]))
        assert (load.requests, load.input_tokens) == (100.0, 500.0)

    def test_online_adds_what_will_arrive(self) -> None:
        demand = b.demand("tiny", waiting=10, rate_per_s=2.0, input_tokens_mean=700.0)
        (load,) = api.loads(b.observation(demands=[demand], mode=ReplayMode.ONLINE))
        assert (load.requests, load.input_tokens) == (610.0, 700.0)

    def test_lengths_come_from_the_latest_window_that_knows_them(self) -> None:
        past = tuple((b.demand("tiny", output_tokens_mean=o, input_tokens_mean=10.0),) for o in (50.0, 70.0))
        obs = replace(b.observation(demands=[b.demand("tiny", waiting=3)]), history=past)
        (load,) = api.loads(obs)
        assert load.output_tokens == 70.0

    def test_nothing_known_is_typical(self) -> None:
        (load,) = api.loads(b.observation(demands=[]))
        assert load.requests == 0.0
        assert load.input_tokens > 100
        assert load.output_tokens > 10


class TestThroughput:
    def test_matches_arithmetic_by_hand(self) -> None:
        o = replace(
            opt(),
            kv_capacity_tokens=11_000,
            prefill_tokens_per_s=10_000.0,
            decode_base_s=0.02,
            decode_per_seq_s=0.0001,
            decode_per_kv_token_s=1e-7,
        )
        # 10 requests of 1000 + 100 tokens fit; 0.1 s prefill; 200 steps of 0.02 / 10 + 0.0001 + 1.1e-4
        assert api.batch_size(o, LOAD) == pytest.approx(10.0)
        assert api.requests_per_s(o, LOAD) == pytest.approx(1 / (0.1 + 200 * (0.002 + 0.0001 + 0.00011)))

    def test_a_request_that_does_not_fit_is_never_served(self) -> None:
        o = replace(opt(), kv_capacity_tokens=1100)
        assert api.requests_per_s(o, LOAD) == 0.0
        assert api.serving_time_s([o], LOAD) == float("inf")

    def test_cached_prompts_cost_no_prefill(self) -> None:
        assert api.requests_per_s(opt(), LOAD._replace(prefix_hit=0.9)) > api.requests_per_s(opt(), LOAD)

    @given(
        requests=st.floats(1, 1e5),
        seqs=st.integers(1, 512),
        kinds=st.lists(st.sampled_from(["big", "mid", "small"]), min_size=1, max_size=6),
    )
    @settings(max_examples=up_to(60), deadline=None)
    def test_serving_time_is_monotone(self, requests: float, seqs: int, kinds: list[str]) -> None:
        mix = [opt(kind) for kind in kinds]
        load = LOAD._replace(requests=requests)
        time_s = api.serving_time_s(mix, load, seqs)
        assert 0 < time_s <= api.serving_time_s(mix[:1], load, seqs) * (1 + 1e-6)
        assert time_s <= api.serving_time_s(mix, load._replace(requests=2 * requests), seqs)

    def test_a_large_batch_takes_as_long_as_its_throughput_says(self) -> None:
        mix = [opt("big"), opt("mid"), opt("mid", tp=2)]
        load = LOAD._replace(requests=1e6)
        rate = sum(api.requests_per_s(o, load) for o in mix)
        assert api.serving_time_s(mix, load) == pytest.approx(1e6 / rate, rel=0.01)

    def test_a_single_request_takes_its_own_latency(self) -> None:
        o, load = opt(), LOAD._replace(requests=1.0)
        latency = 1000 / o.prefill_tokens_per_s + 400 * o.decode_base_s
        assert api.serving_time_s([o], load) == pytest.approx(latency, rel=0.05)


class TestFill:
    def test_uses_every_device_once(self) -> None:
        obs = b.observation((("big", 8), ("mid", 7), ("small", 3)), ("tiny",))
        used = [d for spec in api.fill(obs, api.loads(obs)) for d in spec.devices]
        assert len(used) == len(set(used)) == 18

    def test_keeps_what_it_is_given(self) -> None:
        obs = b.observation((("big", 8),), ("tiny",))
        kept = (api.spec_of(opt(tp=4), ("n00/2", "n00/3", "n00/4", "n00/5")),)
        specs = api.fill(obs, api.loads(obs), kept)
        assert specs[0] == kept[0]
        assert len({d for s in specs for d in s.devices}) == 8

    def test_gives_the_models_their_shares(self) -> None:
        obs = b.observation((("big", 8),) * 4, ("large", "tiny"), [b.busy("large", 500), b.busy("tiny", 500)])
        specs = api.fill(obs, api.loads(obs))
        large = sum(len(s.devices) for s in specs if s.model == "large")
        assert 16 < large < 32, "the large model needs most of it, and not all"

    def test_stops_when_the_load_is_served_in_time(self) -> None:
        obs = b.observation((("big", 8),), ("tiny",), [b.busy("tiny", 100)])
        assert len(api.fill(obs, api.loads(obs), until_s=1e6)) == 1

    def test_a_pipeline_may_span_nodes_but_a_stage_may_not(self) -> None:
        obs = b.observation((("mid", 4), ("mid", 4)), ("large",), [b.busy("large")])
        obs = replace(obs, options=(opt("mid", 4, 2, "large"),))
        (spec,) = api.fill(obs, api.loads(obs))
        assert {d[:3] for d in spec.devices[:4]} == {"n00"}
        assert {d[:3] for d in spec.devices[4:]} == {"n01"}

    def test_leaving_and_lost_devices_are_left_out(self) -> None:
        obs = b.observation((("big", 4),), ("tiny",))
        devices = list(obs.devices)
        devices[0] = replace(devices[0], available=False)
        devices[1] = replace(devices[1], leaving_in_s=60.0)
        obs = replace(obs, devices=tuple(devices))
        assert [d.id for d in api.usable_devices(obs)] == ["n00/2", "n00/3"]
        assert [d.id for d in api.usable_devices(obs, horizon_s=30.0)] == ["n00/1", "n00/2", "n00/3"]
        assert {d for s in api.fill(obs, api.loads(obs)) for d in s.devices} == {"n00/2", "n00/3"}

    def test_groups_stay_within_a_node(self) -> None:
        obs = b.observation((("big", 6), ("big", 3)), ("tiny",))
        assert api.groups(obs, "big", 4) == [("n00/0", "n00/1", "n00/2", "n00/3")]
        assert len(api.groups(obs, "big", 3)) == 3

    def test_shrink_drops_the_least_efficient_first(self) -> None:
        obs = b.observation((("big", 2), ("small", 2)), ("tiny",), [b.busy("tiny", 10)])
        specs = (
            api.spec_of(opt("small"), ("n01/0",)),
            api.spec_of(opt("big"), ("n00/0",)),
            api.spec_of(opt("small"), ("n01/1",)),
        )
        assert api.shrink(obs, api.loads(obs), specs, 1e6) == (specs[1],)
        assert api.shrink(obs, api.loads(obs), specs, 1e-3) == specs


class TestReconfiguration:
    def test_costs_nothing_to_stay(self) -> None:
        obs = b.observation()
        plan = Plan(api.fill(obs, api.loads(obs)))
        assert api.reconfiguration_s(b.serving(obs, plan), plan) == 0.0

    def test_is_the_start_of_the_changed_share(self) -> None:
        obs = b.observation((("big", 4),), ("tiny",))
        one, two = (api.spec_of(opt(), (f"n00/{i}",)) for i in (0, 1))
        served = b.serving(obs, Plan((one,)))
        assert api.reconfiguration_s(served, Plan((one, two))) == pytest.approx(opt().start_s / 2)

    def test_devices_that_serve_must_drain_first(self) -> None:
        obs = b.observation((("big", 4),), ("tiny",))
        one = api.spec_of(opt(), ("n00/0",))
        wide = api.spec_of(opt(tp=2), ("n00/0", "n00/1"))
        idle = b.serving(obs, Plan((one,)))
        busy = replace(
            idle,
            replicas=(idle.replicas[0]._replace(running=10, outstanding_tokens=1000.0, decode_step_s=0.05),),
        )
        extra = api.reconfiguration_s(busy, Plan((wide,))) - api.reconfiguration_s(idle, Plan((wide,)))
        assert extra == pytest.approx(100 * 0.05)


class TestRouting:
    def test_first_to_finish_weighs_speed(self) -> None:
        slow, fast = b.replica(0, decode_tokens_per_s=500.0), b.replica(1, decode_tokens_per_s=2000.0)
        queued = fast._replace(outstanding_tokens=400.0)
        assert api.first_to_finish(b.request(), (slow, fast)) == 1
        assert api.first_to_finish(b.request(), (slow, queued)) == 1
        assert api.first_to_finish(b.request(), (slow, fast._replace(ready_in_s=60.0))) == 0

    def test_finish_times_are_backlog_work_and_own_steps(self) -> None:
        views = (b.replica(0), b.replica(1, waiting_tokens=5000, outstanding_tokens=300.0, ready_in_s=3.0))
        job = b.request()
        expected = [api.backlog_s(v) + api.work_s(job, v) + 3 * 200.0 * v.decode_step_s for v in views]
        assert api.finish_times_s(job, views, tail=3) == pytest.approx(expected)

    def test_cached_tokens_are_no_work(self) -> None:
        assert api.work_s(b.request(), b.replica(), 1000) < api.work_s(b.request(), b.replica())

    def test_a_request_too_long_for_all_goes_to_the_largest(self) -> None:
        views = tuple(b.replica(i, kv_capacity_tokens=c) for i, c in enumerate((100, 900, 500)))
        assert api.first_to_finish(b.request(), views) == 1

    @given(weights=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=16).filter(lambda w: sum(w) > 0.1))
    @settings(max_examples=up_to(50), deadline=None)
    def test_turns_follow_the_weights(self, weights: list[float]) -> None:
        turns = [api.weighted_turn(weights, float(t)) for t in range(1000)]
        for index, weight in enumerate(weights):
            assert abs(turns.count(index) / 1000 - weight / sum(weights)) < 0.02

    def test_counter(self) -> None:
        memo = Memo()
        assert [api.count_up(memo, "x") for _ in range(3)] == [0.0, 1.0, 2.0]

    def test_priority_is_by_tier_then_arrival(self) -> None:
        old, new = b.request(arrival_s=5.0), b.request(arrival_s=9.0)
        assert api.first_come(old) < api.first_come(new)
        assert api.first_come(new._replace(tier=1)) < api.first_come(old)


def test_everything_offered_exists_and_is_described() -> None:
    for name in api.__all__:
        thing = getattr(api, name)
        assert not callable(thing) or thing.__doc__, name


class TestMakespan:
    def layout(self, obs: api.Observation, load: api.Load, **options: float) -> float:
        return api.plan_makespan_s(obs, api.fill(obs, [load], **options), [load])  # type: ignore[arg-type]

    def test_more_requests_longer_answers_and_fewer_replicas_take_longer(self) -> None:
        obs = b.observation()
        base = self.layout(obs, LOAD)
        assert self.layout(obs, LOAD._replace(requests=4000.0)) > 2.0 * base
        assert self.layout(obs, LOAD._replace(output_tokens=800.0, output_tokens_p90=1600.0)) > base
        specs = api.fill(obs, [LOAD])
        assert api.plan_makespan_s(obs, specs[: len(specs) // 2], [LOAD]) > base
        assert 0 < base < float("inf")

    def test_nobody_to_serve_it_is_never_and_nothing_to_serve_is_at_once(self) -> None:
        obs = b.observation()
        assert api.plan_makespan_s(obs, (), [LOAD]) == float("inf")
        assert api.plan_makespan_s(obs, (), [LOAD._replace(requests=0.0)]) == 0.0
        huge = LOAD._replace(input_tokens=1e9)
        assert self.layout(obs, huge) == float("inf")

    def test_the_slowest_model_counts_and_slow_devices_do(self) -> None:
        obs = b.observation(models=("tiny", "large"))
        loads = [LOAD, LOAD._replace(model="large")]
        specs = api.fill(obs, loads)
        each = [api.plan_makespan_s(obs, specs, [load]) for load in loads]
        assert api.plan_makespan_s(obs, specs, loads) == max(each)
        slow = replace(obs, devices=tuple(replace(d, speed=0.5) for d in obs.devices))
        assert api.plan_makespan_s(slow, specs, loads) == pytest.approx(2.0 * max(each), rel=0.02)

    def test_long_answers_on_a_slow_replica_are_told_from_throughput(self) -> None:
        """A few requests: half the throughput gone, and yet no later, since routers keep off slow steps."""
        obs = b.observation((("big", 8), ("small", 8)))
        few = LOAD._replace(requests=6.0)
        kinds = {d.id: d.kind for d in obs.devices}
        specs = api.fill(obs, [few])
        fast = tuple(s for s in specs if kinds[s.devices[0]] == "big")
        slow = tuple(s for s in specs if kinds[s.devices[0]] == "small")
        assert api.plan_makespan_s(obs, fast, [few]) < api.plan_makespan_s(obs, slow, [few])
        assert api.plan_makespan_s(obs, specs, [few]) < api.plan_makespan_s(obs, slow, [few])

    @settings(max_examples=up_to(40), deadline=None)
    @given(st.floats(1, 1e5), st.floats(1, 2e4), st.floats(1, 3000))
    def test_it_is_a_time_for_any_load(self, requests: float, inputs: float, outputs: float) -> None:
        load = api.Load("tiny", requests, inputs, outputs, 2 * outputs)
        assert self.layout(b.observation(), load) > 0.0


class TestForecast:
    def test_holt_follows_a_trend_and_never_falls_below_nothing(self) -> None:
        assert api.holt([]) == 0.0
        assert api.holt([5.0]) == 5.0
        assert api.holt([7.0] * 6) == pytest.approx(7.0)
        rising = api.holt([10.0, 20.0, 30.0, 40.0], 0.8, 0.8)
        assert rising == pytest.approx(50.0, rel=0.1)
        assert api.holt([40.0, 20.0, 1.0], 1.0, 1.0) == 0.0

    def test_what_was_released_is_known_and_lengths_of_answers_are_forecast(self) -> None:
        past = tuple((b.busy("tiny", 100, outputs=o),) for o in (100.0, 200.0, 300.0))
        obs = replace(b.observation(demands=[b.busy("tiny", 900, outputs=400.0)]), history=past)
        (load,) = api.expected_loads(obs, 0.9, 0.9)
        assert load.requests == 900.0
        assert load.output_tokens > 400.0
        online = replace(obs, mode=ReplayMode.ONLINE)
        (load,) = api.expected_loads(online, 0.9, 0.9)
        assert load.requests > 900.0

    def test_without_history_it_is_the_load_just_seen(self) -> None:
        obs = b.observation(demands=[b.busy("tiny", 900)])
        assert api.expected_loads(obs) == api.loads(obs)
        nothing = b.observation(demands=[])
        assert api.expected_loads(nothing) == api.loads(nothing)


class TestSlowDevices:
    def test_slow_is_against_the_likes_and_what_is_left_out_gets_no_replica(self) -> None:
        obs = b.observation()
        slow = {"n00/0", "n01/3"}
        obs = replace(obs, devices=tuple(replace(d, speed=0.4 if d.id in slow else 1.0) for d in obs.devices))
        assert api.slow_devices(obs, 0.7) == slow
        assert api.slow_devices(obs, 0.3) == frozenset()
        used = {d for s in api.fill(obs, [LOAD], leave_out=slow) for d in s.devices}
        assert used
        assert not used & slow
