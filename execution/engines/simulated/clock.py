"""Real time for the performance model: its seconds, stretched by a scale."""

from __future__ import annotations

import math
import time

CATCH_UP_S = 0.05
"""Real seconds by which steps may be late and the next ones make up for it; beyond, the lost time is lost."""


class ScaledClock:
    """Seconds of the performance model, as `time.monotonic` goes on. At scale 0 everything is due at once."""

    __slots__ = ("_origin_s", "scale")

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self._origin_s = time.monotonic()

    def now_s(self) -> float:
        """Model time; infinite at scale 0."""
        return (time.monotonic() - self._origin_s) / self.scale if self.scale else math.inf

    def monotonic_s(self, at_s: float) -> float:
        """When a model time comes, on `time.monotonic`."""
        return self._origin_s + at_s * self.scale

    def forgive(self, at_s: float) -> None:
        """Something due at `at_s` happens now: when that is far too late, model time goes back to it."""
        late_s = time.monotonic() - self.monotonic_s(at_s)
        if self.scale and late_s > CATCH_UP_S:
            self._origin_s += late_s
