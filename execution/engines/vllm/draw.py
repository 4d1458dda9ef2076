"""The token at one position, from (logits, seed, position) alone: the same rule as the torch engine's.

One number in [0, 1) that (seed, position) determine is looked up in the cumulative distribution of the row. So a
request goes on elsewhere with the very tokens that it would have had here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Draw:
    """How to choose. `temperature` above 0; `top_k` 0: all tokens."""

    seed: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0

    def token(self, logits: npt.NDArray[np.float32], position: int) -> int:
        """The token that follows, from one row of logits [vocabulary]."""
        weights = np.exp((logits - logits.max()).astype(np.float64) / self.temperature)
        if self.top_p >= 1.0 and not 0 < self.top_k < weights.size:
            return self._lookup(weights, position)
        order = np.argsort(-weights, kind="stable")
        ranked = weights[order]
        if self.top_k:
            ranked[self.top_k :] = 0.0
        sums = ranked.cumsum()
        outside = sums - ranked >= self.top_p * sums[-1]  # the one that crosses the line stays
        outside[0] = False
        ranked[outside] = 0.0
        return int(order[self._lookup(ranked, position)])

    def _lookup(self, weights: npt.NDArray[np.float64], position: int) -> int:
        sums = weights.cumsum()
        found = int(np.searchsorted(sums, uniform(self.seed, position) * sums[-1], side="right"))
        return min(found, weights.size - 1)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from two integers, by splitmix64 (Steele, Lea and Flood, 2014)."""
    return (_mix(_mix(seed) + position * _GOLDEN) >> 11) * 2.0**-53


def _mix(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
