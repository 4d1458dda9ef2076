"""What goes otherwise than expected in a simulation: noise, slow-downs, lost units."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A unit takes `factor` times as long for what it does in [from_s, until_s)."""

    unit: int
    from_s: float
    until_s: float
    factor: float


@dataclass(frozen=True, slots=True)
class Loss:
    """A unit is gone at a time. With the last unit of a memory its contents go too, unless data have their
    home there or are staged there on their way elsewhere (host memory survives its processors)."""

    unit: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Everything that goes wrong in one run; the default is nothing.

    Factors are lognormal with mean 1 and these coefficients of variation, drawn per task (whatever unit runs
    it) and per move, so that all schedulers meet the same luck.
    """

    duration_cv: float = 0.0
    transfer_cv: float = 0.0
    slowdowns: tuple[Slowdown, ...] = ()
    losses: tuple[Loss, ...] = ()
    seed: int = 0

    def duration_factor(self, task: int) -> float:
        """For one task."""
        return _lognormal(self.duration_cv, self.seed * 1_000_003 + task)

    def transfer_factor(self, version: int, target: int) -> float:
        """For one hop."""
        return _lognormal(self.transfer_cv, (self.seed * 1_000_003 + version) * 1_009 + target + 7)

    def end_s(self, unit: int, start_s: float, takes_s: float) -> float:
        """When work that starts then and would take so long at full speed is done on a unit."""
        if not self.slowdowns:
            return start_s + takes_s
        now, left = start_s, takes_s
        while left > 0.0:
            factor, until = 1.0, math.inf
            for slow in self.slowdowns:
                if slow.unit != unit:
                    continue
                if slow.from_s <= now < slow.until_s:
                    factor *= slow.factor
                    until = min(until, slow.until_s)
                elif slow.from_s > now:
                    until = min(until, slow.from_s)
            if now + left * factor <= until:
                return now + left * factor
            left -= (until - now) / factor
            now = until
        return now


CALM = Disturbance()


def _lognormal(cv: float, seed: int) -> float:
    if cv <= 0.0:
        return 1.0
    variance = math.log(1.0 + cv * cv)
    return math.exp(random.Random(seed).gauss(0.0, math.sqrt(variance)) - variance / 2.0)
