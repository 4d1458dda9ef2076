"""Which of two is faster, by pairs of interleaved runs: a decision with known error rates, as early as it is clear.

Each pair runs both, in alternating order, so that what slows the machine down for a while slows both. The test is the
exact sign test on `before / after > min_gain`: it assumes nothing about how times are distributed. It is looked at a
fixed number of times, each at its share of the error rate (Bonferroni), so the chance to accept a candidate whose median
gain is not above `min_gain` is at most `error_rate`; by the same count, a candidate with the gain is refused early with
at most that chance, and one that shows too little until the last look is refused as undecided.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from execution.compiler.verdict import Speed

_LOOKS = (12, 18, 27, 40, 60, 90, 135)
_LEAST_S = 300e-6
"""A run is repeated until it takes so long: shorter ones measure the clock."""
_MAX_REPEATS = 2000


class PairedTest:
    """Collects pairs and says when it is decided."""

    def __init__(
        self,
        *,
        min_gain: float = 1.03,
        error_rate: float = 0.01,
        max_pairs: int = _LOOKS[-1],
        threads: int = 1,
    ) -> None:
        if min_gain <= 0 or not 0 < error_rate < 0.5:
            raise ValueError(f"paired test: min_gain {min_gain} and error_rate {error_rate} make no test")
        self._min_gain, self._threads = min_gain, threads
        self._looks = (*(n for n in _LOOKS if n < max_pairs), max(max_pairs, _LOOKS[0]))
        self._alpha = error_rate / len(self._looks)
        self._error_rate = error_rate
        self._before: list[float] = []
        self._after: list[float] = []

    def add(self, before_s: float, after_s: float) -> Speed | None:
        """One more pair; the decision, as soon as there is one."""
        if before_s <= 0 or after_s <= 0:
            raise ValueError(f"paired test: seconds must be above 0, are {before_s} and {after_s}")
        self._before.append(before_s)
        self._after.append(after_s)
        pairs = len(self._before)
        if pairs not in self._looks:
            return None
        better, worse = self._signs()
        if better <= self._alpha:
            return self._speed(ok=True, reason="faster, by the sign test", p_value=better)
        if worse <= self._alpha:
            return self._speed(ok=False, reason=f"gain is not above {self._min_gain:g}", p_value=better)
        if pairs == self._looks[-1]:
            return self.undecided()
        return None

    def undecided(self) -> Speed:
        """What is known now, when there will be no more pairs: refused."""
        better = self._signs()[0] if self._before else 1.0
        return self._speed(
            ok=False,
            reason=f"a gain above {self._min_gain:g} was not shown in {len(self._before)} pairs",
            p_value=better,
        )

    def _signs(self) -> tuple[float, float]:
        """Chances of so many wins, and of so many losses, were each as likely as the other."""
        ratios = [b / a for b, a in zip(self._before, self._after, strict=True)]
        wins = sum(r > self._min_gain for r in ratios)
        losses = sum(r < self._min_gain for r in ratios)
        return _at_least(wins, len(ratios)), _at_least(losses, len(ratios))

    def _speed(self, *, ok: bool, reason: str, p_value: float) -> Speed:
        ratios = sorted(b / a for b, a in zip(self._before, self._after, strict=True))
        low, high = _median_interval(ratios, self._error_rate) if ratios else (0.0, math.inf)
        ratio = statistics.median(ratios) if ratios else 1.0
        tail = f": {ratio:.3f}x [{low:.3f}, {high:.3f}] after {len(ratios)} pairs"
        return Speed(
            ok=ok,
            reason=reason + tail,
            ratio=ratio,
            low=low,
            high=high,
            p_value=min(1.0, p_value * len(self._looks)),
            pairs=len(ratios),
            before_s=statistics.median(self._before) if ratios else 0.0,
            after_s=statistics.median(self._after) if ratios else 0.0,
            threads=self._threads,
            min_gain=self._min_gain,
        )


def compare_steps(
    before: Callable[[], object],
    after: Callable[[], object],
    *,
    min_gain: float = 1.03,
    error_rate: float = 0.01,
    max_pairs: int = _LOOKS[-1],
    limit_s: float = 30.0,
    threads: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    settle: int = 3,
) -> Speed:
    """In place: two step functions that do the same work, one with what is there, one with what would replace it."""
    for _ in range(settle):
        before()
        after()
    end_s = clock() + limit_s
    repeats = _repeats(before, after, clock)
    test = PairedTest(min_gain=min_gain, error_rate=error_rate, max_pairs=max_pairs, threads=threads)
    turn = 0
    while clock() < end_s:
        first, second = (before, after) if turn % 2 == 0 else (after, before)
        one, two = _timed(first, repeats, clock), _timed(second, repeats, clock)
        decision = test.add(*((one, two) if turn % 2 == 0 else (two, one)))
        if decision is not None:
            return decision
        turn += 1
    return test.undecided()


def _repeats(before: Callable[[], Any], after: Callable[[], Any], clock: Callable[[], float]) -> int:
    """How often each is run in a measurement."""
    quickest = min(_timed(before, 1, clock), _timed(after, 1, clock))
    return max(1, min(_MAX_REPEATS, math.ceil(_LEAST_S / quickest)))


def _timed(run: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        run()
    return max((clock() - start) / repeats, 1e-9)


def _at_least(wins: int, pairs: int) -> float:
    """Chance of at least so many heads."""
    return float(sum(math.comb(pairs, k) for k in range(wins, pairs + 1)) / 2**pairs)


def _median_interval(ordered: list[float], error_rate: float) -> tuple[float, float]:
    """Distribution-free confidence interval of the median by order statistics."""
    pairs = len(ordered)
    rank, tail = 0, 0.0
    while rank < pairs // 2:
        tail += math.comb(pairs, rank) / 2**pairs
        if 2 * tail > error_rate:
            break
        rank += 1
    if rank == 0:
        return ordered[0], ordered[-1]
    return ordered[rank - 1], ordered[pairs - rank]
