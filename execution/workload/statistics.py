"""What a workload looks like in numbers: rate, burstiness, lengths, prefix sharing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loop.contracts import Workload


@dataclass(frozen=True, slots=True)
class LengthStatistics:
    """Token counts of prompts or answers."""

    mean: float
    p50: float
    p90: float
    p99: float
    longest: int


@dataclass(frozen=True, slots=True)
class WorkloadStatistics:
    """Numbers of a whole workload; zeros where there is nothing to tell."""

    count: int
    duration_s: float
    """Arrival of the last request."""
    rate_per_s: float
    peak_rate_per_s: float
    """Over the busiest 60th of the duration."""
    cv: float
    """Coefficient of variation of the gaps between arrivals: 1 is Poisson, above is bursty."""
    input_tokens: LengthStatistics
    output_tokens: LengthStatistics
    rank_correlation: float
    """Spearman's, of input and output tokens."""
    prefix_sharing: float
    """Share of the prompt blocks that an earlier request has had (an endless cache would hit these)."""
    models: Mapping[str, int]
    tiers: Mapping[int, int]


def describe(workload: Workload) -> WorkloadStatistics:
    """Statistics of a workload."""
    requests = workload.requests
    times = np.array([request.arrival_s for request in requests])
    inputs = np.array([request.input_tokens for request in requests])
    outputs = np.array([request.output_tokens for request in requests])
    duration_s = float(times[-1]) if len(times) else 0.0
    rates = rate_series(workload, 60)
    return WorkloadStatistics(
        count=len(requests),
        duration_s=duration_s,
        rate_per_s=len(requests) / duration_s if duration_s > 0 else 0.0,
        peak_rate_per_s=float(rates.max()) if len(rates) else 0.0,
        cv=gap_cv(times),
        input_tokens=_lengths(inputs),
        output_tokens=_lengths(outputs),
        rank_correlation=rank_correlation(inputs, outputs),
        prefix_sharing=prefix_sharing(workload),
        models=dict(sorted(Counter(request.model for request in requests).items())),
        tiers=dict(sorted(Counter(request.tier for request in requests).items())),
    )


def rate_series(workload: Workload, bins: int) -> NDArray[np.float64]:
    """Arrivals per second in `bins` equal parts of the duration; empty without a duration."""
    times = np.array([request.arrival_s for request in workload.requests])
    if not len(times) or times[-1] <= 0:
        return np.empty(0)
    counts, _ = np.histogram(times, bins=bins, range=(0.0, float(times[-1])))
    return counts / (float(times[-1]) / bins)


def gap_cv(times: NDArray[np.float64]) -> float:
    """CV of the gaps between ascending times; 0 of fewer than three."""
    gaps = np.diff(times)
    if len(gaps) < 2 or gaps.mean() <= 0:
        return 0.0
    return float(gaps.std() / gaps.mean())


def rank_correlation(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Spearman's rank correlation; 0 where one of them does not vary."""
    if len(first) < 3 or first.min() == first.max() or second.min() == second.max():
        return 0.0
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rank of each value; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def prefix_sharing(workload: Workload) -> float:
    """Share of the prompt blocks that stand at the head of a prompt and were seen before."""
    seen: set[int] = set()
    total = shared = 0
    for request in workload.requests:
        blocks = request.block_hashes
        total += len(blocks)
        for block in blocks:
            if block not in seen:
                break
            shared += 1
        seen.update(blocks)
    return shared / total if total else 0.0


def _lengths(values: NDArray[np.int64]) -> LengthStatistics:
    if not len(values):
        return LengthStatistics(0.0, 0.0, 0.0, 0.0, 0)
    p50, p90, p99 = (float(q) for q in np.quantile(values, (0.5, 0.9, 0.99)))
    return LengthStatistics(float(values.mean()), p50, p90, p99, int(values.max()))
