"""Stopping early: what the windows seen so far say about those to come."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt
from statistics import fmean, stdev

from scipy.special import stdtr


def hopeless(ratios: Sequence[float], margin: float, error: float, looks: int) -> bool:
    """Whether a candidate with these ratios to the incumbent, one for each window, will not win by `margin`.

    One-sided paired t-test of the mean log ratio (Student, 1908) against that of a candidate that wins by
    exactly the margin, at `error / looks`. Testing at each of `looks` looks at growing data then stops a
    winner with a probability of at most `error` in all, however the looks depend on each other (Bonferroni's
    bound; Dunn, 1961). Windows are taken as independent and their log ratios as normal. With fewer than two
    windows nothing is said.
    """
    if error <= 0.0 or len(ratios) < 2:
        return False
    logs = [log(ratio) for ratio in ratios]
    excess = fmean(logs) - log(1.0 - margin)
    if excess <= 0.0:
        return False
    spread = stdev(logs) / sqrt(len(logs))
    if spread == 0.0:
        return True
    return float(stdtr(len(logs) - 1, -excess / spread)) < error / max(1, looks)
