"""What holds in every run, whatever is asked of the cluster and whatever befalls it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from execution.twin import WorldParameters
from loop.contracts import Finish, Plan, RequestRecord
from tests.examples import up_to
from tests.execution.twin.audit import audit
from tests.execution.twin.doubles import Bench, LeastLoaded, RoundRobin
from tests.execution.twin.scenarios import PLANS, Scenario, scenarios


@pytest.mark.slow
@settings(max_examples=up_to(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios())
def test_sums_are_what_their_parts_say_and_memory_is_never_overcommitted(scenario: Scenario) -> None:
    bench = Bench(
        policy=LeastLoaded() if scenario.scan else RoundRobin(),
        leap=False,
        world=WorldParameters(jitter=scenario.jitter),
        kv_capacity_tokens=scenario.kv_capacity_tokens,
        start_s=0.3,
    )
    twin = bench.twin
    twin.apply(Plan(PLANS[scenario.plans[0][1]]))
    twin.submit(scenario.requests)
    for event in scenario.events:
        twin.inject(event)
    for tick in range(1, 120):
        twin.run_until(tick * 0.0731)
        audit(twin)


@settings(max_examples=up_to(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios())
def test_every_request_ends_in_exactly_one_record_with_times_in_order(scenario: Scenario) -> None:
    bench = scenario.run(leap=True)
    assert sorted(r.id for r in bench.records) == [r.id for r in scenario.requests]
    for record in bench.records:
        if record.finish is Finish.OK:
            assert _in_order(record)
            assert 0 <= record.cached_tokens < record.input_tokens
    ends = [r.last_token_s for r in bench.records if r.finish is Finish.OK]
    assert ends == sorted(ends), "records come as the clock goes"
    snapshot = bench.twin.snapshot()
    assert all(backlog.waiting == backlog.running == 0 for backlog in snapshot.backlog)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios())
def test_runs_are_deterministic(scenario: Scenario) -> None:
    jittery = replace(scenario, jitter=0.1)
    assert jittery.run(leap=True).records == jittery.run(leap=True).records


def _in_order(r: RequestRecord) -> bool:
    return r.arrival_s <= r.queued_s <= r.scheduled_s < r.first_token_s <= r.last_token_s
