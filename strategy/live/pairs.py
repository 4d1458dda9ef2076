"""Pairs of like requests, one of each arm of a canary by traffic, and how their latencies compare.

Requests are matched when they are routed, by model, tier and length of the prompt (in powers of two), each
with the latest one of the other arm that has no partner yet; never by what came of them. The log ratio of
their normalised latencies (end to end, per output token) is a pair. A partner that does not come back counts
as soon as it has waited so long that the ratio is certain to lie beyond the clip: who starves requests is
found out before they end.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from loop.contracts import Finish, RequestRecord, RequestView

_WAITING = 16
"""Requests of each class and arm that wait for a partner; the oldest go without."""

_Class = tuple[str, int, int]


@dataclass(slots=True, eq=False)
class _Tracked:
    """One request under way."""

    id: int
    challenged: bool
    arrival_s: float
    predicted_tokens: float
    log_latency: float | None = None
    """Of end-to-end seconds per output token; inf: refused or lost; None: not known yet."""
    partner: _Tracked | None = None


@dataclass(slots=True)
class _Queues:
    """Requests of one class without a partner, by arm."""

    champion: deque[_Tracked] = field(default_factory=deque)
    challenger: deque[_Tracked] = field(default_factory=deque)

    def of(self, *, challenged: bool) -> deque[_Tracked]:
        return self.challenger if challenged else self.champion


class MatchedPairs:
    """Collects the pairs of one canary. Its memory is bounded by the requests under way."""

    def __init__(self, clip: float) -> None:
        """`clip`: the log ratio beyond which a pair counts no more."""
        self._clip = clip
        self._lock = threading.Lock()  # live, requests are routed in another thread than they are counted in
        self._queues: dict[_Class, _Queues] = {}
        self._tracked: dict[int, _Tracked] = {}
        self._done: list[float] = []

    def routed(self, request: RequestView, challenged: bool) -> None:  # noqa: FBT001 - a Routed
        """A request was given to an arm; a second time (decode, retry) is no news."""
        with self._lock:
            self._routed(request, challenged=challenged)

    def _routed(self, request: RequestView, *, challenged: bool) -> None:
        if request.id in self._tracked:
            return
        mine = _Tracked(request.id, challenged, request.arrival_s, max(1.0, request.predicted_output_tokens))
        key = (request.model, request.tier, request.input_tokens.bit_length())
        queues = self._queues.setdefault(key, _Queues())
        self._tracked[request.id] = mine
        others = queues.of(challenged=not challenged)
        while others:
            partner = others.pop()
            if partner.id in self._tracked:
                mine.partner, partner.partner = partner, mine
                return
        waiting = queues.of(challenged=challenged)
        waiting.append(mine)
        if len(waiting) > _WAITING:
            self._tracked.pop(waiting.popleft().id, None)

    def finished(self, record: RequestRecord) -> None:
        """A request is over."""
        with self._lock:
            self._finished(record)

    def _finished(self, record: RequestRecord) -> None:
        mine = self._tracked.get(record.id)
        if mine is None:
            return
        if record.finish in {Finish.INFEASIBLE, Finish.CANCELLED}:  # no arm's doing
            self._forget(mine)
            return
        if record.finish is Finish.OK:
            spent = max(1e-9, record.last_token_s - record.arrival_s)
            mine.log_latency = math.log(spent / max(1, record.output_tokens))
        else:
            mine.log_latency = math.inf
        self._settle(mine)

    def take(self, now_s: float) -> tuple[float, ...]:
        """Log ratios, challenger to champion, of the pairs that are settled since the last call."""
        with self._lock:
            for mine in list(self._overdue(now_s)):
                assert mine.partner is not None  # noqa: S101 - as `_overdue` found it
                self._done.append(self._clip if mine.challenged else -self._clip)
                self._forget(mine)
            done, self._done = self._done, []
            return tuple(done)

    def _overdue(self, now_s: float) -> Iterator[_Tracked]:
        """Requests that are slower than their partner by more than the clip already, and not done."""
        for mine in self._tracked.values():
            partner = mine.partner
            if mine.log_latency is None and partner is not None and partner.log_latency is not None:
                so_far = math.log(max(1e-9, now_s - mine.arrival_s) / mine.predicted_tokens)
                if so_far - partner.log_latency > self._clip:
                    yield mine

    def _settle(self, mine: _Tracked) -> None:
        partner = mine.partner
        if partner is None or partner.log_latency is None or mine.log_latency is None:
            return
        if math.isfinite(mine.log_latency) or math.isfinite(partner.log_latency):
            ratio = mine.log_latency - partner.log_latency
            self._done.append(ratio if mine.challenged else -ratio)
        self._forget(mine)

    def _forget(self, mine: _Tracked) -> None:
        self._tracked.pop(mine.id, None)
        if mine.partner is not None:
            self._tracked.pop(mine.partner.id, None)
