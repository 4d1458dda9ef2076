"""Trusted policy modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from loop.contracts import Policy, PolicySource
from strategy.baselines import BASELINES, BaselineError, load_baseline
from strategy.policy import ModulePolicy, PolicyModuleError, digest_of, summary_of

SOURCE = '''"""Says no. And more."""
def should_replan(obs, memo): return False
def plan(obs, budget_s, memo): return obs.plan
def route(request, replicas, memo): return 0
def priority(request, replica, memo): return 0.0
'''


def test_a_module_is_a_policy_with_an_identity() -> None:
    policy = ModulePolicy("mine", SOURCE)
    assert isinstance(policy, Policy)
    assert policy.digest == digest_of(SOURCE)
    assert len(policy.digest) == 12
    assert ModulePolicy.from_source(policy.as_source()).digest == policy.digest
    assert summary_of(SOURCE) == "Says no. And more."


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (SOURCE.replace("def route", "def steer"), "does not define route()"),
        ("def plan(:\n", "line 1"),
        ("import nowhere_to_be_found\n" + SOURCE, "fails on import: ModuleNotFoundError"),
    ],
)
def test_a_module_that_is_no_policy_is_refused_in_words(source: str, words: str) -> None:
    with pytest.raises(PolicyModuleError, match=words.replace("(", r"\(").replace(")", r"\)")):
        ModulePolicy.from_source(PolicySource("bad", source, digest_of(source)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyModuleError, match=r"none\.py"):
        ModulePolicy.from_file(tmp_path / "none.py")


def test_baselines_load_once_and_differ() -> None:
    assert load_baseline("least_loaded") is load_baseline("least_loaded")
    assert len({load_baseline(name).digest for name in BASELINES}) == len(BASELINES)
    assert all(summary_of(load_baseline(name).source).endswith(".") for name in BASELINES)


def test_an_unknown_baseline_names_those_that_there_are() -> None:
    with pytest.raises(BaselineError, match=r"'best'.*least_loaded"):
        load_baseline("best")
