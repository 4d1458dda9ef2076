"""A champion must have paid in the latest windows as they came."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from loop.compose.evolving import LEAST_WINDOWS, WATCHED_IN_A_ROW, Evolution
from loop.contracts import Evaluation, EvaluationTask, PolicySource, Score
from tests.loop.test_scoring_next import past as past_window

CHAMPION, INCUMBENT = PolicySource("champion", "# a", "a"), PolicySource("incumbent", "# b", "b")


class Twin:
    """Answers with given objectives; remembers what it was asked."""

    def __init__(self, objectives: dict[str, float]) -> None:
        self.objectives = objectives
        self.tasks: list[EvaluationTask] = []
        self.now: list[Any] = []

    def learn(self, _past: Sequence[Any], now: Any = None) -> None:
        self.now.append(now)

    def evaluate(
        self, jobs: Sequence[tuple[PolicySource, EvaluationTask]]
    ) -> Iterator[tuple[int, Evaluation]]:
        for number, (policy, task) in enumerate(jobs):
            self.tasks.append(task)
            value = self.objectives.get(policy.name)
            score = None if value is None else Score(value, value, 0.0, 1.0, 0.0, 0.0, (value,))
            yield number, Evaluation(policy.digest, score)


def hindsight(objectives: dict[str, float], windows: int) -> tuple[str, Twin]:
    evolution = Evolution.__new__(Evolution)
    twin = Twin(objectives)
    evolution._evaluator = twin  # type: ignore[assignment]
    past = tuple(past_window(index) for index in range(windows))
    return evolution._hindsight(CHAMPION, INCUMBENT, past), twin


@pytest.mark.parametrize(("mine", "doubt"), [(99.0, False), (100.0, False), (101.0, True)])
def test_it_may_not_have_taken_longer(mine: float, doubt: bool) -> None:
    found, twin = hindsight({"champion": mine, "incumbent": 100.0}, windows=6)
    assert bool(found) is doubt
    assert {task.windows for task in twin.tasks} == {tuple(range(6))[-WATCHED_IN_A_ROW:]}
    assert twin.now == [None]  # from where the windows began, not as if they came next


def test_who_fails_there_has_no_proof() -> None:
    assert "no score" in hindsight({"incumbent": 100.0}, windows=6)[0]


def test_nothing_is_promoted_on_a_window_or_two() -> None:
    found, twin = hindsight({"champion": 1.0, "incumbent": 100.0}, windows=LEAST_WINDOWS - 1)
    assert "too few" in found
    assert not twin.tasks
