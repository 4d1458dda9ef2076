from __future__ import annotations

from pathlib import Path

import pytest

from loop.contracts import (
    Memo,
    Plan,
    PolicySource,
    Quantiles,
    Resources,
    ServingStats,
    WindowResult,
)
from loop.journal import Decision, EvolutionRecord, Journal, JournalError, replay_decision
from tests.loop.builders import ScriptedPolicy, observation, replica_view, spec


def result(index: int) -> WindowResult:
    q = Quantiles(1, 1.0, 1.0, 1.0, 1.0)
    stats = ServingStats(1, 0, 0, 10, 10, q, q, q, 1, 0, 0, 0)
    plan = Plan((spec("n0/gpu0"),))
    return WindowResult(index, 3.0, 2.0, 0.5, 0.5, 0.5, True, "d", plan, stats, Resources(1.0, 2.0, 3.0))


def decision(policy: ScriptedPolicy, *, replanned: bool = True) -> Decision:
    obs = observation(replicas=(replica_view(),))
    memo = Memo()
    policy.should_replan(obs, memo)
    return Decision(0, policy.digest, obs, {}, dict(memo), False, replanned, Plan((spec("n0/gpu0"),)), 0.05)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    source = PolicySource("p", "x = 1", "abc", ("par",), "cma", "note")
    made = decision(ScriptedPolicy(should_replan=True))
    with Journal(path, run="evolving", config={"seed": 1}) as journal:
        journal.policy(source)
        journal.policy(source)
        journal.decided(made)
        journal.ended(0, result(0))
        journal.evolved(EvolutionRecord(0, "a", "b", "why", {"deaths": {"worse": 3}}))
        journal.finish()
    with Journal(path) as journal:
        assert journal.runs() == [(1, "evolving", True)]
        (read,) = journal.decisions()
        assert read.observation == made.observation
        assert read.plan == made.plan
        assert read.result == result(0)
        assert journal.evolution() == [EvolutionRecord(0, "a", "b", "why", {"deaths": {"worse": 3}})]
        assert journal.source("abc") == source
        with pytest.raises(JournalError, match="no policy zzz"):
            journal.source("zzz")


def test_a_tick_is_decided_the_same_again(tmp_path: Path) -> None:
    policy = ScriptedPolicy(should_replan=True)
    with Journal(tmp_path / "j", run="r") as journal:
        journal.decided(decision(policy))
        (read,) = journal.decisions()
    assert replay_decision(read, policy, budget_s=1.0) == []
    other = ScriptedPolicy(should_replan=True, plan=Plan((spec("n0/gpu1"),)))
    assert any("plan" in d for d in replay_decision(read, other, budget_s=1.0))
    assert any("replanned" in d for d in replay_decision(read, ScriptedPolicy(), budget_s=1.0))


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("<html>" * 1000)
    with pytest.raises(JournalError, match=r"report\.html"):
        Journal(path)
