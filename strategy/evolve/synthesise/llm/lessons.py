"""What became of candidates, kept for the next prompts: what failed and why, what lost, what worked."""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from loop.contracts import Death, Evaluation, PolicySource, Score

_KEPT_SCORES = 256


@dataclass(frozen=True, slots=True)
class Lesson:
    """One candidate and its end. `ratio`: objective against its parent's; None: no score."""

    note: str
    operator: str
    death: Death | None
    detail: str
    ratio: float | None


class Lessons:
    """The last failures and losers, and the best winners; `keep` of each."""

    def __init__(self, keep: int = 8) -> None:
        self._keep = keep
        self._failed: deque[Lesson] = deque(maxlen=keep)
        self._lost: deque[Lesson] = deque(maxlen=keep)
        self._won: deque[Lesson] = deque(maxlen=4 * keep)
        self._scores: dict[str, Score] = {}

    def learn(
        self, candidate: PolicySource, evaluation: Evaluation, parent_objective: float | None
    ) -> float | None:
        """Remember the end of a candidate; its ratio to its parent."""
        ratio = ratio_of(evaluation, parent_objective)
        lesson = Lesson(candidate.note, candidate.operator, evaluation.death, evaluation.detail, ratio)
        if ratio is not None and evaluation.death in (None, Death.WORSE, Death.OVERFIT):
            (self._won if ratio < 1.0 and evaluation.death is None else self._lost).append(lesson)
        elif evaluation.death is not None:
            self._failed.append(lesson)
        if evaluation.score is not None:
            self._scores.pop(candidate.digest, None)
            self._scores[candidate.digest] = evaluation.score
            while len(self._scores) > _KEPT_SCORES:
                del self._scores[next(iter(self._scores))]
        return ratio

    def score(self, digest: str) -> Score | None:
        """The last score of a candidate that was told of."""
        return self._scores.get(digest)

    def failed_text(self) -> str:
        """Why candidates died, the latest first; the same reason once."""
        unique: dict[tuple[str, str], Lesson] = {}
        for lesson in reversed(self._failed):
            unique.setdefault((str(lesson.death), lesson.detail), lesson)
        return "\n".join(
            f"- {lesson.death}: {_short(lesson.detail, 240)} (change: {_short(lesson.note)})"
            for lesson in unique.values()
        )

    def lost_text(self) -> str:
        """What made it worse, the latest first."""
        return _ratios(list(reversed(self._lost)))

    def won_text(self) -> str:
        """What made it better, the best first."""
        return _ratios(sorted(self._won, key=lambda lesson: lesson.ratio or 1.0)[: self._keep])


def ratio_of(evaluation: Evaluation, parent_objective: float | None) -> float | None:
    """Objective against the parent's; None: one of them is not known."""
    if evaluation.score is None or not parent_objective or parent_objective <= 0:
        return None
    return evaluation.score.objective / parent_objective


def score_text(score: Score) -> str:
    """The parts of a score in one line."""
    return (
        f"total execution time {score.total_execution_time_s:.4g} s, goodput {score.goodput:.1%}, "
        f"TTFT p99 {score.ttft_p99_s:.3g} s, device-hours {score.device_hours:.4g}, "
        f"replans in {score.replan_rate:.0%} of windows"
    )


def _ratios(lessons: Sequence[Lesson]) -> str:
    return "\n".join(f"- {lesson.ratio:.3f}: {_short(lesson.note)}" for lesson in lessons)


def _short(text: str, width: int = 160) -> str:
    return textwrap.shorten(text, width, placeholder=" ...") or "not described"
