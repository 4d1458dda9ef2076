from __future__ import annotations

import pytest

from strategy.policy_api import Memo
from tests.strategy.builders import loaded, replica, request
from tests.strategy.evolve.idiom_policies import order, policy_with, routed

CHOOSERS = (
    "expected_completion", "filling_batch", "first_to_finish", "kv_bounded", "least_backlog_seconds", "long_to_large",
    "prefix_affinity", "shortest_queue_by_work", "speed_corrected", "spread_long", "virtual_usage", "weighted_score",
)  # fmt: skip


@pytest.mark.parametrize("name", CHOOSERS)
def test_a_shorter_queue_is_preferred_and_requests_spread(name: str) -> None:
    full = replica(0, waiting=40, waiting_tokens=40_000, outstanding_tokens=8000.0)
    assert routed(name, request(), [full, replica(1)]) == 1
    policy, views, memo = policy_with(name), [replica(i) for i in range(4)], Memo()
    for number in range(12):
        job = request(number)
        index = policy.route(job, views, memo)
        views[index] = loaded(views[index], job)
    assert [view.waiting for view in views] == [3, 3, 3, 3]


@pytest.mark.parametrize("name", [*CHOOSERS, "power_of_d", "weighted_power_of_d", "weighted_turns"])
def test_what_does_not_fit_is_not_sent_there(name: str) -> None:
    views = [
        replica(0, kv_capacity_tokens=500),
        replica(1, waiting=9, waiting_tokens=9000),
        replica(2, kv_capacity_tokens=500),
    ]
    assert {routed(name, request(n), views) for n in range(8)} == {1}


@pytest.mark.parametrize(
    "name", ["expected_completion", "shortest_queue_by_work", "weighted_score", "kv_bounded"]
)
def test_a_replica_that_still_loads_has_to_be_worth_the_wait(name: str) -> None:
    loading = replica(0, ready_in_s=60.0)
    assert routed(name, request(), [loading, replica(1, waiting=2, waiting_tokens=2000)]) == 1
    crowd = replica(1, waiting=3000, waiting_tokens=3_000_000, outstanding_tokens=600_000.0)
    assert routed(name, request(), [loading, crowd]) == 0


def test_kv_bounded_sees_that_a_small_cache_is_slow_for_long_contexts() -> None:
    views = [replica(0, kv_capacity_tokens=20_000, outstanding_tokens=2000.0, waiting=10, waiting_tokens=80_000),
             replica(1, kv_capacity_tokens=400_000, outstanding_tokens=2600.0, waiting=13, waiting_tokens=90_000)]  # fmt: skip
    assert routed("kv_bounded", request(input_tokens=8000), views, TAIL=0.0) == 1
    assert routed("first_to_finish", request(input_tokens=8000), views, TAIL=0.0) == 0


def test_filling_batch_counts_the_step_to_come() -> None:
    crowded = replica(0, waiting=200, outstanding_tokens=2000.0, waiting_tokens=2000, max_num_seqs=256)
    few = replica(1, waiting=5, outstanding_tokens=2000.0, waiting_tokens=2000)
    assert routed("filling_batch", request(), [crowded, few], CROWD=4.0) in (0, 1)
    slow_when_full = replica(
        0, decode_tokens_per_s=300.0, waiting=20, waiting_tokens=20_000, outstanding_tokens=4000.0
    )
    fast_when_full = replica(
        1, decode_tokens_per_s=4000.0, waiting=22, waiting_tokens=22_000, outstanding_tokens=4400.0
    )
    assert routed("filling_batch", request(), [slow_when_full, fast_when_full]) == 1


def test_long_to_large_keeps_long_prompts_off_small_caches() -> None:
    views = [
        replica(0, kv_capacity_tokens=12_000),
        replica(1, waiting=1, waiting_tokens=1500, kv_capacity_tokens=400_000),
    ]
    assert routed("long_to_large", request(input_tokens=9000), views, CRAMPED_FACTOR=5.0) == 1
    assert routed("long_to_large", request(input_tokens=100), views, CRAMPED_FACTOR=5.0) == 0


def test_spread_long_minds_memory_for_long_requests_only() -> None:
    views = [replica(0, kv_tokens=90_000), replica(1, waiting=1, waiting_tokens=3000)]
    assert routed("spread_long", request(input_tokens=8000), views, CROWDING_S=60.0) == 1
    assert routed("spread_long", request(input_tokens=100), views, CROWDING_S=60.0) == 0


def test_speed_corrected_puts_stragglers_off() -> None:
    views = [replica(0, speed=0.4), replica(1, waiting=1, waiting_tokens=5000)]
    assert routed("speed_corrected", request(), views, SLOW_POWER=4.0) == 1
    assert routed("first_to_finish", request(), views) == 0


def test_virtual_usage_puts_off_memory_that_is_spoken_for() -> None:
    views = [
        replica(0, kv_capacity_tokens=50_000, waiting_tokens=40_000),
        replica(1, waiting_tokens=50_000, kv_capacity_tokens=900_000),
    ]
    assert routed("virtual_usage", request(), views, PRESSURE=4.0) == 1
    assert routed("virtual_usage", request(), views, PRESSURE=0.01) == 0


def test_prefix_affinity_follows_the_cache_within_its_bound() -> None:
    views = [replica(0, waiting=20, waiting_tokens=20_000), replica(1)]
    cached = request(cached_tokens=(900, 0))
    assert routed("prefix_affinity", cached, views, MAX_EXTRA_WAIT_S=60.0) == 0
    assert routed("prefix_affinity", cached, views, MAX_EXTRA_WAIT_S=0.1) == 1


def test_weighted_score_trades_prefix_against_queue() -> None:
    views = [replica(0, waiting=1, waiting_tokens=1000), replica(1)]
    cached = request(cached_tokens=(1000, 0))
    assert routed("weighted_score", cached, views, PREFIX_WEIGHT=5.0) == 0
    assert routed("weighted_score", cached, views, PREFIX_WEIGHT=0.1) == 1


def test_expected_completion_counts_the_pace_of_the_device() -> None:
    views = [replica(0, decode_step_s=0.2), replica(1, waiting=3, waiting_tokens=3000)]
    assert routed("expected_completion", request(predicted_output_tokens=800.0), views) == 1


@pytest.mark.slow
def test_random_choices_differ_from_request_to_request_and_follow_capacity() -> None:
    views = [replica(i, decode_tokens_per_s=4000.0 if i < 2 else 250.0, prefill_tokens_per_s=40_000.0 if i < 2 else 2500.0)
             for i in range(10)]  # fmt: skip
    counts = [0] * 10
    for number in range(400):
        counts[routed_once("weighted_power_of_d", number, views)] += 1
    assert counts[0] + counts[1] > 300
    assert len({routed_once("power_of_d", number, views) for number in range(50)}) > 3
    turns, memo = policy_with("weighted_turns"), Memo()
    dealt = [turns.route(request(n), views, memo) for n in range(400)]
    assert dealt.count(0) > 5 * dealt.count(5) > 0


_POLICIES: dict[str, object] = {}


def routed_once(name: str, number: int, views: list) -> int:  # type: ignore[type-arg]
    policy = _POLICIES.setdefault(name, policy_with(name))
    return policy.route(request(number), views, Memo())  # type: ignore[attr-defined,no-any-return]


# Queue order. Each is asked which of a few waiting requests goes first.

LONG = request(0, predicted_output_tokens=2000.0)
SHORT = request(1, predicted_output_tokens=20.0)
LATE_SHORT = request(2, predicted_output_tokens=20.0, arrival_s=1000.0, now_s=1000.0)
BIG_PROMPT = request(3, input_tokens=20_000)
SMALL_PROMPT = request(4, input_tokens=100)


def test_shortest_first_disciplines_age() -> None:
    for name in ("shortest_predicted", "shortest_within_bound", "highest_density"):
        assert order(name, [LONG, SHORT], replica()) == [1, 0], name
        assert order(name, [LONG, LATE_SHORT], replica()) == [0, 1], f"{name}: nobody starves"
    assert order("shortest_prompt", [BIG_PROMPT, SMALL_PROMPT], replica()) == [1, 0]


def test_longest_first_disciplines() -> None:
    for name in ("longest_first", "heaviest_first"):
        assert order(name, [SHORT, LONG], replica()) == [1, 0], name
    assert order("longest_prompt", [SMALL_PROMPT, BIG_PROMPT], replica()) == [1, 0]
    assert order("heaviest_first", [SMALL_PROMPT, BIG_PROMPT], replica()) == [1, 0]


def test_overtaking_is_bounded() -> None:
    late = SHORT._replace(arrival_s=17.0)
    later = SHORT._replace(arrival_s=21.0)
    endless = LONG._replace(predicted_output_tokens=1e9)
    assert order("shortest_within_bound", [endless, late], replica(), OVERTAKE_S=20.0) == [1, 0]
    assert order("shortest_within_bound", [endless, later], replica(), OVERTAKE_S=20.0) == [0, 1]


def test_deadline_slack_starts_long_prompts_sooner() -> None:
    assert order("deadline_slack", [SMALL_PROMPT, BIG_PROMPT], replica()) == [1, 0]
    assert order("deadline_slack", [request(0), request(1, tier=1)], replica()) == [1, 0]


def test_cached_prefixes_go_together() -> None:
    waiting = [request(i, cached_tokens=(1000,) if i % 2 else (0,), arrival_s=i * 0.1) for i in range(4)]
    assert order("cached_first", waiting, replica()) == [1, 3, 0, 2]


def test_lost_requests_and_tiers_go_first() -> None:
    lost = request(1, retries=1, arrival_s=5.0)
    assert order("retries_first", [request(0), lost], replica()) == [1, 0]
    assert order("tier_weighted", [request(0), lost], replica()) == [1, 0]
    assert order("tier_weighted", [request(0), request(1, tier=1, arrival_s=40.0)], replica()) == [0, 1]
    assert order(
        "first_come_first_served", [request(0, arrival_s=2.0), request(1, arrival_s=1.0)], replica()
    ) == [1, 0]


@pytest.mark.parametrize("name", ["cached_first", "first_come_first_served", "heaviest_first", "highest_density",
                                  "longest_first", "longest_prompt", "retries_first", "shortest_predicted",
                                  "shortest_prompt", "shortest_within_bound"])  # fmt: skip
def test_a_higher_tier_goes_first(name: str) -> None:
    assert order(name, [LONG, SHORT, request(5, tier=1), BIG_PROMPT], replica())[0] == 2
