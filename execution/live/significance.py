"""Is B faster than A? Paired runs, side by side in time, and a test that does not mind outliers.

Wilcoxon's signed-rank test (1945) with the normal approximation, on log(before / after) - log(min_gain); the interval
is that of the median by order statistics.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from execution.compiler.verdict import Speed

_Z = 1.96


def paired_speed(
    before_s: Sequence[float],
    after_s: Sequence[float],
    *,
    threads: int,
    min_gain: float = 1.0,
    error_rate: float = 0.01,
) -> Speed:
    """What pairs of runs say about `before / after >= min_gain`."""
    pairs = [(b, a) for b, a in zip(before_s, after_s, strict=True) if a > 0 and b > 0]
    if not pairs:
        return Speed(False, "nothing was measured", 0.0, 0.0, 0.0, 1.0, 0, 0.0, 0.0, threads, min_gain)
    ratios = sorted(b / a for b, a in pairs)
    p = signed_rank_p([math.log(r / min_gain) for r in ratios])
    half = _Z * math.sqrt(len(ratios)) / 2
    low = ratios[max(0, math.floor(len(ratios) / 2 - half))]
    high = ratios[min(len(ratios) - 1, math.ceil(len(ratios) / 2 + half))]
    ratio = statistics.median(ratios)
    ok = ratio >= min_gain and p <= error_rate
    told = f"{ratio:.2f}x [{low:.2f}, {high:.2f}] in {len(pairs)} pairs, p = {p:.2g}"
    return Speed(
        ok, "" if ok else f"not shown to be {min_gain:.2f}x as fast: {told}", ratio, low, high, p, len(pairs),
        statistics.median(b for b, _ in pairs), statistics.median(a for _, a in pairs), threads, min_gain,
    )  # fmt: skip


def signed_rank_p(differences: Sequence[float]) -> float:
    """One-sided p of "the median is above 0"."""
    values = sorted((d for d in differences if d), key=abs)
    count = len(values)
    if not count:
        return 1.0
    ranks, i = [0.0] * count, 0
    while i < count:
        j = i
        while j < count and abs(values[j]) == abs(values[i]):
            j += 1
        ranks[i:j] = [(i + j + 1) / 2] * (j - i)
        i = j
    above = sum(rank for rank, value in zip(ranks, values, strict=True) if value > 0)
    mean = count * (count + 1) / 4
    spread = math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
    return 0.5 * math.erfc((above - mean - 0.5) / spread / math.sqrt(2))
