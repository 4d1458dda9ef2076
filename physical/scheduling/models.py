"""How long a kernel takes on a kind of unit: learned online, with uncertainty.

Per (kernel, kind, size class) mean and variance of what was observed. For sizes never seen, a line through the
logarithms of the known ones, log t = a + b log size, weighted by counts. What has hardly been tried on a kind
is *uncalibrated*: explorers see its optimistic duration, so that it is tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from physical.scheduling.graph import Task
from physical.scheduling.problem import Durations

CALIBRATED = 10
"""Observations of a size class after which it needs no more exploration (StarPU's default)."""


class Basis(StrEnum):
    """What an estimate rests on."""

    MEASURED = "measured"
    REGRESSION = "regression"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A duration to expect."""

    mean_s: float
    sd_s: float
    """Of one run; for a regression including the doubt about its line."""
    count: int
    """Observations behind it."""
    basis: Basis

    @property
    def calibrated(self) -> bool:
        """Enough observations of this very size class?"""
        return self.basis is Basis.MEASURED and self.count >= CALIBRATED

    def optimistic_s(self, deviations: float) -> float:
        """So many standard errors of the mean below it, never under a tenth of it."""
        if self.basis is Basis.UNKNOWN:
            return 0.0
        error = self.sd_s / math.sqrt(max(1, self.count)) if self.basis is Basis.MEASURED else self.sd_s
        if self.count < CALIBRATED:
            # Few observations say little about their own spread.
            error = max(error, 0.5 * self.mean_s / math.sqrt(max(1, self.count)))
        return max(0.1 * self.mean_s, self.mean_s - deviations * error)


class _Moments:
    """Mean and variance as values come in (Welford 1962), with the past fading at a half-life."""

    __slots__ = ("count", "keep", "mean", "square", "weight")

    def __init__(self, keep: float) -> None:
        self.count, self.weight, self.mean, self.square, self.keep = 0, 0.0, 0.0, 0.0, keep

    def add(self, value: float) -> None:
        self.count += 1
        self.weight = self.keep * self.weight + 1.0
        self.square *= self.keep
        delta = value - self.mean
        self.mean += delta / self.weight
        self.square += delta * (value - self.mean)

    @property
    def variance(self) -> float:
        return self.square / max(self.weight - 1.0, 1.0) if self.count > 1 else 0.0


class PerformanceModel:
    """Durations per (kernel, kind of unit, size class), from observations.

    `half_life`: observations of a size class after which one counts half, so that a unit that slows down is
    noticed; None: all count the same.
    """

    def __init__(self, half_life: float | None = None) -> None:
        if half_life is not None and not half_life > 0:
            raise ValueError(f"half_life is {half_life}, and must be positive or None")
        self._keep = 1.0 if half_life is None else 0.5 ** (1.0 / half_life)
        self._seen: dict[tuple[str, str], dict[float, _Moments]] = {}

    def observe(self, kernel: str, kind: str, size: float, took_s: float) -> None:
        """Learn from one run. Raises ValueError for a negative or infinite time."""
        if not (took_s >= 0.0 and math.isfinite(took_s)):
            raise ValueError(f"kernel '{kernel}' on '{kind}' took {took_s} s, which is no duration")
        sizes = self._seen.setdefault((kernel, kind), {})
        sizes.setdefault(size, _Moments(self._keep)).add(took_s)

    def estimate(self, kernel: str, kind: str, size: float) -> Estimate:
        """What to expect; `Basis.UNKNOWN` with an infinite mean where the kernel never ran on the kind."""
        sizes = self._seen.get((kernel, kind))
        if not sizes:
            return Estimate(math.inf, math.inf, 0, Basis.UNKNOWN)
        known = sizes.get(size)
        if known is not None:
            return Estimate(known.mean, math.sqrt(known.variance), known.count, Basis.MEASURED)
        return _regression(sizes, size)

    def kernels(self) -> Iterable[tuple[str, str]]:
        """(kernel, kind) pairs with observations."""
        return self._seen.keys()

    def durations(self, *, deviations: float = 0.0, able: Iterable[tuple[str, str]] = ()) -> Durations:
        """As a problem wants them: means, or optimistic by so many standard errors (exploration).

        `able`: further (kernel, kind) pairs that can run though they never did. Exploring, they count as
        instantaneous, so that they are tried; else they are left alone.
        """
        possible = set(able)

        def duration(task: Task, kind: str) -> float | None:
            found = self.estimate(task.kernel, kind, task.size)
            if found.basis is Basis.UNKNOWN:
                return 0.0 if deviations > 0.0 and (task.kernel, kind) in possible else None
            return found.optimistic_s(deviations) if deviations > 0.0 else found.mean_s

        return duration


def _regression(sizes: dict[float, _Moments], size: float) -> Estimate:
    """A line through the logarithms; through one point, proportional to size."""
    points = [
        (math.log(s), math.log(m.mean), m.count, m.variance / m.mean**2)
        for s, m in sorted(sizes.items())
        if s > 0 and m.mean > 0
    ]
    count = sum(m.count for m in sizes.values())
    if not points or size <= 0:
        mean = sum(m.mean * m.count for m in sizes.values()) / count
        return Estimate(mean, mean, count, Basis.REGRESSION)
    weight = sum(n for _, _, n, _ in points)
    x_mean = sum(x * n for x, _, n, _ in points) / weight
    y_mean = sum(y * n for _, y, n, _ in points) / weight
    spread = sum(n * (x - x_mean) ** 2 for x, _, n, _ in points)
    slope = 1.0
    if spread > 0.0:
        slope = sum(n * (x - x_mean) * (y - y_mean) for x, y, n, _ in points) / spread
    away = math.log(size) - x_mean
    mean = math.exp(y_mean + slope * away)
    noise = sum(v * n for _, _, n, v in points) / weight
    if len(points) > 2:
        misfit = sum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y, _, _ in points) / (len(points) - 2)
    else:
        # Two points fit any line, one point says nothing of the slope: doubt grows with the distance.
        misfit = 0.05 + (0.25 * away**2 if len(points) < 2 else 0.0)
    lever = 1.0 / len(points) + (away**2 / (spread / weight * len(points)) if spread > 0.0 else 0.0)
    return Estimate(mean, mean * math.sqrt(noise + misfit * (1.0 + lever)), count, Basis.REGRESSION)
