"""Leaping over decode steps in closed form gives what simulating each of them gives."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings

from loop.contracts import RequestRecord
from tests.examples import up_to
from tests.execution.twin.scenarios import Scenario, scenarios

TIMES = ("arrival_s", "queued_s", "scheduled_s", "first_token_s", "last_token_s")


def _same(a: RequestRecord, b: RequestRecord) -> bool:
    return all(
        math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-9) if name in TIMES else x == y
        for name, x, y in zip(a._fields, a, b, strict=True)
    )


@settings(max_examples=up_to(50), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios())
def test_every_record_is_the_same(scenario: Scenario) -> None:
    _compare(scenario)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios())
def test_every_record_is_the_same_in_many_more_cases(scenario: Scenario) -> None:
    _compare(scenario)


def _compare(scenario: Scenario) -> None:
    leapt = scenario.run(leap=True)
    stepped = scenario.run(leap=False)
    ours = sorted(leapt.records)
    reference = sorted(stepped.records)
    assert [r.id for r in ours] == [r.id for r in reference]
    for a, b in zip(ours, reference, strict=True):
        assert _same(a, b), (a, b)
    used, expected = leapt.twin.snapshot(), stepped.twin.snapshot()
    assert math.isclose(used.resources.joules, expected.resources.joules, rel_tol=1e-6, abs_tol=1e-6)
    assert math.isclose(used.resources.device_s, expected.resources.device_s, rel_tol=1e-6, abs_tol=1e-6)
    assert math.isclose(
        used.reconfiguration_stall_s, expected.reconfiguration_stall_s, rel_tol=1e-6, abs_tol=1e-6
    )
    assert math.isclose(used.idle_pending_s, expected.idle_pending_s, rel_tol=1e-6, abs_tol=1e-6)
