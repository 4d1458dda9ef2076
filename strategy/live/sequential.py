"""A test that may be looked at after every pair: which of two arms is better, by betting.

Each pair is the log ratio of what the challenger and the champion took for the same work (below 0: the
challenger was faster), clipped to [-clip, clip]. Two gamblers bet on every next pair, one that the challenger
is better, one that it is worse. Under the null hypothesis that the mean is on the other side their capital is
a non-negative supermartingale, so it exceeds 1/alpha with a probability of at most alpha at *any* time, however
the pairs are distributed (Ville's inequality; testing by betting: Waudby-Smith and Ramdas, 2024). The capital
is spread over a few fixed bet sizes, small ones for small effects and large ones for large effects.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

WINDOW_CLIP = 0.25
"""For windows compared with counterfactuals: these pairs differ by a few percent."""
REQUEST_CLIP = 1.5
"""For pairs of different requests: these differ by their lengths and their luck."""

BETS = (0.05, 0.15, 0.4, 0.7, 0.98)
"""Shares of the capital staked on a pair at the clip; below 1, so that nobody is ever ruined."""

_EVEN = (0.0,) * len(BETS)


@dataclass(frozen=True, slots=True)
class BettingTest:
    """The state of the test after some pairs: a value."""

    clip: float
    pairs: int = 0
    total: float = 0.0
    """Sum of the clipped log ratios."""
    log_better: tuple[float, ...] = _EVEN
    """Log capital, per bet size, of who bets that the mean is below 0."""
    log_worse: tuple[float, ...] = _EVEN
    """The same for a mean above 0."""

    @property
    def mean(self) -> float:
        """Mean clipped log ratio; 0 of none."""
        return self.total / self.pairs if self.pairs else 0.0

    @property
    def better(self) -> float:
        """Evidence (e-value) that the challenger is better: significant at alpha from 1/alpha on."""
        return _capital(self.log_better)

    @property
    def worse(self) -> float:
        """Evidence (e-value) that the challenger is worse."""
        return _capital(self.log_worse)

    def after(self, log_ratios: Iterable[float]) -> BettingTest:
        """The test after these pairs too; `inf` counts as the clip.

        Raises:
            ValueError: a pair is no number.
        """
        pairs, total = self.pairs, self.total
        better, worse = list(self.log_better), list(self.log_worse)
        for value in log_ratios:
            if math.isnan(value):
                raise ValueError("a log ratio is not a number")
            x = min(self.clip, max(-self.clip, value)) / self.clip
            pairs += 1
            total += x * self.clip
            for i, bet in enumerate(BETS):
                better[i] += math.log1p(-bet * x)
                worse[i] += math.log1p(bet * x)
        return replace(self, pairs=pairs, total=total, log_better=tuple(better), log_worse=tuple(worse))


def _capital(logs: tuple[float, ...]) -> float:
    """Mean of the capitals, of which each began with 1."""
    return math.fsum(math.exp(min(x, 500.0)) for x in logs) / len(logs)
