"""When to try again: Retry-After, backoff with jitter, and a breaker for an endpoint that is down."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime


def retry_after_s(headers: Mapping[str, str], now_s: float | None = None) -> float | None:
    """Seconds that the endpoint asks to be left alone for: `Retry-After` as seconds or as an HTTP date
    (RFC 9110, 10.2.3), or the finer `retry-after-ms`; None: it does not say. `now_s` is seconds since 1970.
    """
    try:
        return max(0.0, min(float(headers["retry-after-ms"]) / 1000.0, 1e6))
    except (KeyError, ValueError):
        pass
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = _until(text, time.time() if now_s is None else now_s)
    return None if seconds != seconds else max(0.0, min(seconds, 1e6))  # noqa: PLR0124  NaN: says nothing


def _until(date: str, now_s: float) -> float:
    try:
        at = parsedate_to_datetime(date)
    except ValueError:
        return float("nan")
    if at.tzinfo is None:  # "-0000" in a mail, GMT in HTTP
        at = at.replace(tzinfo=UTC)
    return at.timestamp() - now_s


def backoff_s(attempt: int, base_s: float, cap_s: float, rng: random.Random) -> float:
    """Pause after failure number `attempt` (from 0): doubling, capped, between half and one and a half times
    that, so that requests that failed together do not come back together (jitter: Brooker, 2015)."""
    return min(cap_s, base_s * 2.0 ** min(attempt, 32) * rng.uniform(0.5, 1.5))


class Breaker:
    """Opens after some failures in a row; then one probe is let through after each pause, which doubles.

    (The circuit breaker of Nygard, 2007.)
    """

    def __init__(self, failures: int, pause_s: float, cap_s: float, clock: Callable[[], float]) -> None:
        self._limit = failures
        self._first_pause_s = pause_s
        self._cap_s = cap_s
        self._clock = clock
        self._failures = 0
        self._pause_s = pause_s
        self._open_until_s: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether the endpoint counts as down."""
        return self._open_until_s is not None

    @property
    def opens_in_s(self) -> float:
        """Seconds until a request may go out; 0: now."""
        return 0.0 if self._open_until_s is None else max(0.0, self._open_until_s - self._clock())

    def success(self) -> None:
        """The endpoint answered, whatever it was."""
        self._failures = 0
        self._pause_s = self._first_pause_s
        self._open_until_s = None

    def failure(self) -> None:
        """A request got no answer."""
        self._failures += 1
        if self._open_until_s is not None:
            if self.opens_in_s > 0.0:  # of a request that was under way when it opened: nothing new
                return
            self._pause_s = min(self._cap_s, 2.0 * self._pause_s)
        elif self._failures < self._limit:
            return
        self._open_until_s = self._clock() + self._pause_s
