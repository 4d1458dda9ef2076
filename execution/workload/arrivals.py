"""Arrival processes: renewal processes with a given rate profile and burstiness (CV of the gaps).

A Gamma or Weibull renewal process of unit rate runs in operational time; the integral of the rate profile
maps it to the clock (Çinlar 1975). ServeGen (Xiang et al. 2025) found that both families describe clients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gamma as gamma_function
from scipy.special import gammaln

Floats = NDArray[np.float64]


class Family(StrEnum):
    """Distribution of the gaps between arrivals."""

    GAMMA = "gamma"
    WEIBULL = "weibull"


def unit_gaps(rng: np.random.Generator, count: int, cv: float, family: Family = Family.GAMMA) -> Floats:
    """`count` gaps of mean 1 and coefficient of variation `cv`; cv 0 is a metronome, cv 1 (Gamma) Poisson."""
    if cv < 1e-3:
        return np.ones(count)
    if family is Family.WEIBULL:
        shape = weibull_shape(round(cv, 6))
        return rng.weibull(shape, count) / float(gamma_function(1.0 + 1.0 / shape))
    variance = cv * cv
    return rng.gamma(1.0 / variance, variance, count)


@lru_cache(maxsize=4096)
def weibull_shape(cv: float) -> float:
    """Shape k of the Weibull distribution with this CV: `G(1+2/k) / G(1+1/k)^2 = 1 + cv^2`, to [0.1, 1000]."""

    def excess(log_shape: float) -> float:
        inverse = math.exp(-log_shape)
        return float(gammaln(1 + 2 * inverse) - 2 * gammaln(1 + inverse)) - math.log1p(cv * cv)

    low, high = math.log(0.1), math.log(1000.0)
    if excess(low) <= 0:
        return 0.1
    if excess(high) >= 0:
        return 1000.0
    for _ in range(60):  # bisection: the CV falls with the shape
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return math.exp((low + high) / 2)


def renewal_times(
    rng: np.random.Generator,
    rates_per_s: Sequence[float],
    bin_s: float,
    cv: float,
    *,
    family: Family = Family.GAMMA,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> Floats:
    """Arrival times in [0, duration_s) of a renewal process whose rate follows a profile.

    The profile holds one rate for each `bin_s` seconds and repeats itself beyond its end; time 0 of the result
    is `start_s` of the profile. The process is in its steady state at the start.
    """
    if duration_s is None:
        duration_s = len(rates_per_s) * bin_s
    edges, mass = _cumulative_rate(rates_per_s, bin_s, start_s, duration_s)
    total = mass[-1]
    if total <= 0:
        return np.empty(0)
    burn_in = 20.0 * max(1.0, cv * cv)
    chunk = int(total + burn_in + 6 * (1 + cv) * math.sqrt(total + burn_in)) + 16
    operational = np.cumsum(unit_gaps(rng, chunk, cv, family)) - burn_in
    while operational[-1] < total:
        more = np.cumsum(unit_gaps(rng, chunk, cv, family)) + operational[-1]
        operational = np.concatenate([operational, more])
    inside = operational[(operational >= 0) & (operational < total)]
    times: Floats = np.minimum(np.interp(inside, mass, edges), np.nextafter(duration_s, 0.0))
    return times


def _cumulative_rate(
    rates_per_s: Sequence[float], bin_s: float, start_s: float, duration_s: float
) -> tuple[Floats, Floats]:
    """Edges of the bins between 0 and duration_s, and the expected number of arrivals up to each."""
    first = math.floor(start_s / bin_s)
    count = math.ceil((start_s + duration_s) / bin_s) - first
    bins = first + np.arange(max(count, 1))
    rates = np.asarray(rates_per_s, dtype=np.float64)[bins % len(rates_per_s)]
    edges = np.append(bins * bin_s, (bins[-1] + 1) * bin_s) - start_s
    edges = np.clip(edges, 0.0, duration_s)
    return edges, np.append(0.0, np.cumsum(rates * np.diff(edges)))


def counted_times(
    rng: np.random.Generator, count: int, span_s: float, cv: float, family: Family = Family.GAMMA
) -> Floats:
    """Exactly `count` ascending times in [0, span_s) with renewal gaps of this CV.

    For measured windows, where the count is known: a plain renewal process of high CV would miss it by
    `(cv^2 - 1) / 2` on average.
    """
    gaps = unit_gaps(rng, count, cv, family)
    total = float(gaps.sum())
    if not total > 0 or not math.isfinite(total):
        return np.sort(rng.random(count)) * span_s
    # The gaps close a circle that is cut open at a random point: no part of the window is favoured.
    times = np.sort((np.cumsum(gaps) + total * rng.random()) % total)
    scaled: Floats = np.minimum(times / total * span_s, np.nextafter(span_s, 0.0))
    return scaled
