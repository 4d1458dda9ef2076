"""Trusted policy modules."""

from __future__ import annotations

import pytest

from loop.contracts import Policy
from strategy.baselines import BASELINES, BaselineError, load_baseline
from strategy.policy import PolicyModuleError, digest_of, summary_of
from tests.strategy.builders import policy_of

SOURCE = '''"""Says no. And more."""
def should_replan(obs, memo): return False
def plan(obs, budget_s, memo): return obs.plan
def route(request, replicas, memo): return 0
def priority(request, replica, memo): return 0.0
'''


def test_a_module_is_a_policy_with_an_identity() -> None:
    policy = policy_of("mine", SOURCE)
    assert isinstance(policy, Policy)
    assert policy.digest == digest_of(SOURCE)
    assert len(policy.digest) == 12
    assert policy.as_source().digest == policy.digest
    assert summary_of(SOURCE) == "Says no. And more."


def test_a_module_that_is_no_policy_is_refused_in_words() -> None:
    with pytest.raises(PolicyModuleError, match=r"policy bad does not define route\(\)"):
        policy_of("bad", SOURCE.replace("def route", "def steer"))


def test_baselines_load_once_and_differ() -> None:
    assert load_baseline("least_loaded") is load_baseline("least_loaded")
    assert len({load_baseline(name).digest for name in BASELINES}) == len(BASELINES)
    assert all(summary_of(load_baseline(name).source).endswith(".") for name in BASELINES)


def test_an_unknown_baseline_names_those_that_there_are() -> None:
    with pytest.raises(BaselineError, match=r"'best'.*least_loaded"):
        load_baseline("best")
