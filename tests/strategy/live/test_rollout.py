"""The state machine, stage by stage."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loop.contracts import PolicySource
from loop.contracts.live import Stage
from strategy.live import CanaryKind, Evidence, LiveConfig, Rollout, Transition, advance

POLICY = PolicySource("new", "n", "new-digest")
OLD = PolicySource("old", "o", "old-digest")
BATCH = LiveConfig.batch()
TRAFFIC = LiveConfig()


def at(stage: Stage, *evidence: Evidence, config: LiveConfig) -> tuple[Rollout, Transition | None]:
    rollout, moved = Rollout(POLICY, "proven in the twin", stage=stage), None
    for seen in evidence:
        assert moved is None, "it moved before the last piece of evidence"
        rollout, moved = advance(rollout, seen, config)
    return rollout, moved


def test_a_proposal_that_is_to_go_live_at_once_passes_shadow_and_canary_in_one_breath() -> None:
    rollout, moved = at(Stage.SHADOW, Evidence(), config=LiveConfig.immediate())
    assert moved is not None
    assert (moved.before, moved.after, moved.reason) == (Stage.SHADOW, Stage.PROMOTED, "proven in the twin")
    assert rollout.stage is Stage.PROMOTED


def test_shadow_lasts_its_windows_and_says_how_often_it_disagreed() -> None:
    one = Evidence(windows=1, asked=50, disagreed=5)
    rollout, moved = at(Stage.SHADOW, one, one, config=TRAFFIC)
    assert moved is not None
    assert moved.after is Stage.CANARY
    assert "100 decisions" in moved.reason
    assert "10%" in moved.reason
    assert rollout.windows == rollout.asked == 0  # a new stage begins with no evidence


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (Evidence(windows=1, faults=1, fault="plan: no devices"), "plan: no devices"),
        (Evidence(windows=1, asked=9, late=2), "2 of 9 decisions"),
    ],
)
def test_a_fault_or_a_late_answer_in_shadow_refuses(seen: Evidence, why: str) -> None:
    _, moved = at(Stage.SHADOW, seen, config=TRAFFIC)
    assert moved is not None
    assert moved.after is Stage.REFUSED
    assert why in moved.reason


def test_a_canary_is_promoted_by_evidence_but_not_before_its_least_length() -> None:
    strong = Evidence(windows=1, pairs=(-0.5,) * 200)
    _, early = at(Stage.CANARY, strong, config=TRAFFIC)
    assert early is None
    _, moved = at(Stage.CANARY, strong, replace(strong, pairs=()), config=TRAFFIC)
    assert moved is not None
    assert moved.after is Stage.PROMOTED
    assert moved.evidence["evidence_better"] > 20


def test_a_canary_that_is_worse_ends_at_once_whatever_its_least_length() -> None:
    _, moved = at(Stage.CANARY, Evidence(windows=1, pairs=(0.5,) * 200), config=TRAFFIC)
    assert moved is not None
    assert moved.after is Stage.REFUSED
    assert "worse than the champion" in moved.reason


def test_one_disastrous_window_ends_a_canary_by_windows() -> None:
    _, moved = at(Stage.CANARY, Evidence(windows=1, pairs=(0.8,)), config=BATCH)
    assert moved is not None
    assert moved.after is Stage.REFUSED
    assert "123% worse" in moved.reason


@pytest.mark.parametrize(("pair", "after"), [(-0.01, Stage.PROMOTED), (0.01, Stage.REFUSED)])
def test_at_its_greatest_length_a_canary_is_decided_by_its_mean(pair: float, after: Stage) -> None:
    steps = [Evidence(windows=1, pairs=(pair,))] * BATCH.canary_max_windows
    _, moved = at(Stage.CANARY, *steps, config=BATCH)
    assert moved is not None
    assert moved.after is after


@pytest.mark.parametrize("config", [BATCH, TRAFFIC])
def test_a_canary_without_anything_to_compare_is_refused_in_the_end(config: LiveConfig) -> None:
    by_windows = config.canary is CanaryKind.WINDOWS
    steps = [Evidence(windows=1)] * config.canary_max_windows * (2 if by_windows else 1)
    _, moved = at(Stage.CANARY, *steps, config=config)
    assert moved is not None
    assert moved.after is Stage.REFUSED
    assert "nothing to compare" in moved.reason


def test_a_fault_that_the_champion_had_to_answer_ends_a_canary() -> None:
    _, moved = at(Stage.CANARY, Evidence(windows=1, faults=3, fault="route: KeyError"), config=TRAFFIC)
    assert moved is not None
    assert moved.after is Stage.REFUSED
    assert "3 times: route: KeyError" in moved.reason


def test_a_watched_champion_is_kept_after_its_windows_and_faults_still_take_it_back() -> None:
    steps = [Evidence(windows=1)] * 10
    rollout, moved = at(Stage.PROMOTED, *steps, config=TRAFFIC)
    assert moved is not None
    assert moved.after is Stage.KEPT
    _, again = advance(rollout, Evidence(windows=1, faults=1, fault="plan: boom"), TRAFFIC)
    assert again is not None
    assert (again.before, again.after) == (Stage.KEPT, Stage.ROLLED_BACK)


def test_a_champion_that_disappoints_goes_back_to_who_would_have_done_better() -> None:
    enough = Evidence(windows=2, saved=0.05, saved_by=OLD)
    _, moved = at(Stage.PROMOTED, enough, config=TRAFFIC)
    assert moved is not None
    assert moved.after is Stage.ROLLED_BACK
    assert moved.back_to == OLD
    assert "old would have saved 5.0%" in moved.reason
    _, little = at(Stage.PROMOTED, replace(enough, saved=0.01), config=TRAFFIC)
    assert little is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"canary_share": 0.0},
        {"shadow_share": 1.5},
        {"confidence": 1.0},
        {"canary_min_windows": 9, "canary_max_windows": 3},
        {"watch_windows": -1},
    ],
)
def test_a_config_out_of_range_names_its_field(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LiveConfig(**wrong)  # type: ignore[arg-type]
