"""What windows took, and how that compares with what another policy would have made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from loop.contracts import PolicySource
from loop.contracts.live import LiveQuestion

_REMEMBERED = 256


class WindowLog:
    """Who decided each window, and its objective as it really was (lower is better)."""

    def __init__(self) -> None:
        self._windows: dict[int, tuple[str, float]] = {}
        self._judged: set[int] = set()

    def add(self, index: int, digest: str, objective: float) -> None:
        """A window is over."""
        self._windows[index] = (digest, objective)
        while len(self._windows) > _REMEMBERED:
            gone = next(iter(self._windows))
            del self._windows[gone]
            self._judged.discard(gone)

    def latest(self, digest: str, count: int) -> tuple[int, ...]:
        """The last so many windows that a policy decided, ascending."""
        return tuple(i for i, (who, _) in self._windows.items() if who == digest)[-count:] if count else ()

    def unjudged(self, digest: str) -> tuple[int, ...]:
        """Windows that a policy decided and that no pair was made of yet."""
        return tuple(i for i, (who, _) in self._windows.items() if who == digest and i not in self._judged)

    def take(self, digest: str, windows: Sequence[int]) -> dict[int, float]:
        """Objectives of those of these windows that a policy decided; a second time they are judged."""
        found = {i: self._windows[i][1] for i in windows if i in self._windows}
        mine = {i: value for i, value in found.items() if self._windows[i][0] == digest}
        return {i: value for i, value in mine.items() if i not in self._judged}

    def judge(self, windows: Sequence[int]) -> None:
        """Pairs were made of these."""
        self._judged.update(windows)


def window_pairs(
    question: LiveQuestion, values: Mapping[str, Sequence[float]], log: WindowLog
) -> tuple[float, ...]:
    """Log ratios of the challenger's real windows to what the champion would have taken.

    The champion's value is simulated, times the twin's bias: the mean log ratio of real to simulated over the
    windows of the question that the champion itself decided. Windows that cannot be compared give no pair.
    """
    challenger, champion = question.policies[0].digest, question.policies[1].digest
    simulated = values.get(champion)
    if simulated is None or len(simulated) != len(question.windows):
        return ()
    of = dict(zip(question.windows, simulated, strict=True))
    own = log.take(champion, question.windows)
    biases = [math.log(real / of[i]) for i, real in own.items() if real > 0 and 0 < of[i] < math.inf]
    bias = fmean(biases) if biases else 0.0
    mine = {i: v for i, v in log.take(challenger, question.windows).items() if v > 0 and of[i] > 0}
    log.judge(tuple(mine))
    return tuple(math.log(real) - math.log(of[i]) - bias for i, real in mine.items())


def saved_share(
    policies: Sequence[PolicySource], values: Mapping[str, Sequence[float]]
) -> tuple[float, PolicySource | None]:
    """The share of the first policy's objective that the best of the others would have saved, and whose it
    is; (0, None) when none would have."""
    totals = {p.digest: sum(values[p.digest]) for p in policies if p.digest in values}
    own = totals.get(policies[0].digest)
    rivals = [p for p in policies[1:] if totals.get(p.digest, math.inf) < math.inf]
    if own is None or own <= 0 or not rivals:
        return 0.0, None
    best = min(rivals, key=lambda p: totals[p.digest])
    saved = 1.0 - totals[best.digest] / own
    return (saved, best) if saved > 0 else (0.0, None)
