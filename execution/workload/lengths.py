"""Token lengths: quantile tables, sampled jointly through a Gaussian copula.

A table holds the quantiles of a distribution at PROBABILITIES; between them, the logarithm of the length is
interpolated linearly. Spearman's rank correlation of input and output becomes the copula's (Nelsen 2006).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

Floats = NDArray[np.float64]
Tokens = NDArray[np.int64]

PROBABILITIES: Floats = np.concatenate(
    [[0.0, 0.002, 0.005, 0.01], np.arange(2, 99) / 100.0, [0.99, 0.995, 0.998, 0.999, 1.0]]
)


def quantile_table(values: ArrayLike, weights: ArrayLike | None = None) -> list[float]:
    """Quantiles of (weighted) values at PROBABILITIES: what `sample` takes."""
    data = np.asarray(values, dtype=np.float64)
    if weights is None:
        return [round(float(q), 3) for q in np.quantile(data, PROBABILITIES)]
    order = np.argsort(data, kind="stable")
    mass = np.cumsum(np.asarray(weights, dtype=np.float64)[order])
    mass /= mass[-1]
    index = np.minimum(np.searchsorted(mass, PROBABILITIES - 1e-12), len(data) - 1)
    return [round(float(q), 3) for q in data[order][index]]


def at(table: Sequence[float], u: Floats) -> Floats:
    """The quantile function of a table at probabilities `u`; values are positive."""
    logs = np.log(np.maximum(np.asarray(table, dtype=np.float64), 1e-9))
    result: Floats = np.exp(np.interp(u, PROBABILITIES, logs))
    return result


def sample(rng: np.random.Generator, table: Sequence[float], count: int) -> Tokens:
    """`count` token lengths, at least 1."""
    return whole(at(table, rng.random(count)))


def sample_pairs(
    rng: np.random.Generator,
    input_table: Sequence[float],
    output_table: Sequence[float],
    rank_correlation: float,
    count: int,
) -> tuple[Tokens, Tokens]:
    """`count` pairs (input, output) with these margins and this Spearman correlation."""
    u, v = correlated_uniforms(rng, rank_correlation, count)
    return whole(at(input_table, u)), whole(at(output_table, v))


def correlated_uniforms(
    rng: np.random.Generator, rank_correlation: float, count: int
) -> tuple[Floats, Floats]:
    """Two uniform variates with this Spearman correlation, by a Gaussian copula."""
    pearson = 2.0 * math.sin(math.pi * rank_correlation / 6.0)
    first, noise = rng.standard_normal((2, count))
    second = pearson * first + math.sqrt(max(0.0, 1.0 - pearson * pearson)) * noise
    return np.asarray(ndtr(first)), np.asarray(ndtr(second))


def lognormal_table(median: float, p99: float, longest: float) -> list[float]:
    """Table of a lognormal distribution given by its median and p99, cut at `longest`."""
    sigma = math.log(max(p99, median) / median) / 2.3263
    inner = np.clip(PROBABILITIES, 1e-4, 1 - 1e-4)
    return [float(q) for q in np.minimum(np.exp(math.log(median) + sigma * ndtri(inner)), longest)]


def whole(values: Floats) -> Tokens:
    """Rounded to tokens, at least 1."""
    result: Tokens = np.maximum(np.rint(values), 1).astype(np.int64)
    return result
