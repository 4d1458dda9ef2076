"""What the steps of an engine held, worked out from when its requests were scheduled and answered.

Between its first and its last token a request is in every step of its replica, and so is everybody else who
decodes at the time. So each request tells one equation, `duration = sum over its steps of what they cost`, linear in
the unknown costs, without any simulation. How the steps lie in time is not known, only how many there were from each
first token to its last: they are spread by what is believed of their costs (StepClock), better each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from hw_profiles.performance.calibrate.journal import WatchedRequest

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stretches:
    """Stretches of time on one replica, as columns: how long each took, and what its steps held in all."""

    duration_s: Floats
    steps: Floats
    sequences: Floats
    """Summed over the steps: those that decoded, and prompts."""
    context_tokens: Floats
    """What the decoding sequences attend to; `padded`: each as much as the longest."""
    prompts: Floats
    prompt_tokens: Floats
    pairs: Floats
    firsts: Floats
    """1 where the time to the first token is in it, with what a request costs beside the steps."""
    others: Floats
    """How many other replicas were busy meanwhile, on average."""
    ends_s: Floats
    """On the run's clock."""

    def __len__(self) -> int:
        return len(self.duration_s)

    def where(self, chosen: NDArray[np.bool_]) -> Stretches:
        """Some of them."""
        return Stretches(*(getattr(self, name)[chosen] for name in self.__slots__))


def joined(parts: Sequence[Stretches]) -> Stretches:
    """Those of several replicas."""
    return Stretches(*(np.concatenate([getattr(p, name) for p in parts]) for name in Stretches.__slots__))


StepTime = Callable[[int, float], float]
"""(sequences that decode, tokens of context) -> seconds of a step without prompts."""


class StepClock:
    """How many steps a replica had done by a time, on the run's clock."""

    def __init__(
        self, requests: Sequence[WatchedRequest], budget_tokens: int, step_s: StepTime, *, padded: bool
    ) -> None:
        scheduled = np.array([r.scheduled_s for r in requests])
        first = np.array([r.first_s for r in requests])
        last = np.array([r.last_s for r in requests])
        context = np.array([r.input_tokens + 0.5 * r.output_tokens for r in requests])
        self._times = np.unique(np.concatenate([scheduled, first, last]))
        decoding = self._at(first, last, np.ones(len(requests)))
        contexts = self._at(first, last, context)
        if padded:
            contexts = decoding * longest(self.times, first, last, context)
        prompts = self._prompt_rates(requests, budget_tokens)
        rates = [
            prompt or (1.0 / max(step_s(round(n), kv), 1e-9) if n > 0.5 else 0.0)
            for n, kv, prompt in zip(decoding.tolist(), contexts.tolist(), prompts.tolist(), strict=True)
        ]
        done = np.cumsum(np.diff(self._times) * np.array(rates[:-1]))
        self._done = np.concatenate([[0.0], done])

    @property
    def times(self) -> Floats:
        """When something began or ended, ascending: between two of them the same requests are on board."""
        return self._times

    def at(self, times_s: Floats | float) -> Floats:
        """Steps by then."""
        return np.asarray(np.interp(times_s, self._times, self._done), dtype=np.float64)

    def _at(self, begin: Floats, end: Floats, weights: Floats) -> Floats:
        """Sum of the weights of all intervals that cover each piece between two times."""
        change = np.zeros(len(self._times) + 1)
        np.add.at(change, np.searchsorted(self._times, begin), weights)
        np.add.at(change, np.searchsorted(self._times, end), -weights)
        return np.cumsum(change)[:-1]

    def _prompt_rates(self, requests: Sequence[WatchedRequest], budget_tokens: int) -> Floats:
        """Steps a second while prompts are computed (each step then holds some of them); else 0."""
        rates = np.zeros(len(self._times))
        begin_s = end_s = -np.inf
        tokens = 0
        for r in [*sorted(requests, key=lambda r: r.scheduled_s), None]:
            if r is not None and r.scheduled_s < end_s:
                end_s, tokens = max(end_s, r.first_s), tokens + r.prefill_tokens
                continue
            if end_s > begin_s > -np.inf:
                low, high = np.searchsorted(self._times, (begin_s, end_s))
                rates[low:high] = max(1, -(-tokens // budget_tokens)) / (end_s - begin_s)
            if r is not None:
                begin_s, end_s, tokens = r.scheduled_s, r.first_s, r.prefill_tokens
        return rates


def stretches(
    requests: Sequence[WatchedRequest],
    others: Sequence[Sequence[WatchedRequest]],
    *,
    budget_tokens: int,
    step_s: StepTime,
    padded: bool = False,
) -> Stretches:
    """Decoding and prefilling stretches of all clean requests of one replica.

    `others`: requests of each other replica of the same node; `budget_tokens`: of one step; `step_s`: what is
    believed of the time of steps; `padded`: contexts count as long as the longest on board (StepFit.padded).
    """
    clock = StepClock(requests, budget_tokens, step_s, padded=padded)
    on_board = _OnBoard(requests, clock)
    busy = [_Busy(theirs) for theirs in others]
    rows: list[list[float]] = []
    for r in requests:
        if not r.clean:
            continue
        if r.output_tokens > 1 and r.last_s > r.first_s:
            rows.append([r.first_s, r.last_s, r.output_tokens - 1.0, 0.0])
        if r.first_s > r.scheduled_s:
            rows.append([r.scheduled_s, r.first_s, 0.0, 1.0])
    begin_s, end_s, steps, firsts = np.array(rows, dtype=np.float64).reshape(len(rows), 4).T
    begin, end = clock.at(begin_s), clock.at(end_s)
    held = [on_board.between(*four) for four in zip(begin_s, end_s, begin, end, strict=True)]
    sequences, contexts, prompts, tokens, pairs = np.array(held).reshape(len(rows), 5).T
    if padded:
        contexts = on_board.padded_tokens(begin_s, end_s)
    return Stretches(
        duration_s=end_s - begin_s,
        steps=np.where(firsts > 0.0, np.maximum(1.0, end - begin), steps),
        sequences=sequences,
        context_tokens=contexts,
        prompts=prompts,
        prompt_tokens=tokens,
        pairs=pairs,
        firsts=firsts,
        others=sum((b.shares(begin_s, end_s) for b in busy), np.zeros(len(rows))),
        ends_s=end_s,
    )


def longest(times: Floats, begin: Floats, end: Floats, values: Floats) -> Floats:
    """At each time (ascending) the largest of the values whose interval [begin, end) covers it; 0.0 for none."""
    found = np.zeros(len(times))
    coming = np.argsort(begin, kind="stable").tolist()
    on_board: list[tuple[float, float]] = []
    arrived = 0
    for i, time in enumerate(times.tolist()):
        while arrived < len(coming) and begin[coming[arrived]] <= time:
            heappush(on_board, (-float(values[coming[arrived]]), float(end[coming[arrived]])))
            arrived += 1
        while on_board and on_board[0][1] <= time:
            heappop(on_board)
        if on_board:
            found[i] = -on_board[0][0]
    return found


class _OnBoard:
    """Everybody on one replica, as arrays."""

    def __init__(self, requests: Sequence[WatchedRequest], clock: StepClock) -> None:
        by = sorted(requests, key=lambda r: r.scheduled_s)
        self._scheduled = np.array([r.scheduled_s for r in by])
        self._first = np.array([r.first_s for r in by])
        self._last = np.array([r.last_s for r in by])
        self._inputs = np.array([float(r.input_tokens) for r in by])
        self._outputs = np.array([float(r.output_tokens) for r in by])
        self._prefill = np.array([float(r.prefill_tokens) for r in by])
        self._first_step, self._last_step = clock.at(self._first), clock.at(self._last)
        self._longest_s = float(np.max(self._last - self._scheduled, initial=0.0))
        self._clock = clock

    def between(
        self, begin_s: float, end_s: float, begin: float, end: float
    ) -> tuple[float, float, float, float, float]:
        """(sequences, context tokens, prompts, prompt tokens, pairs) summed over the steps of a stretch, given in
        seconds and in steps."""
        low, high = np.searchsorted(self._scheduled, (begin_s - self._longest_s, end_s))
        window = slice(low, high)
        first, inputs = self._first[window], self._inputs[window]
        scheduled, prefill = self._scheduled[window], self._prefill[window]
        share, middle = _overlap(self._first_step[window], self._last_step[window], begin, end)
        tokens = share * (self._outputs[window] - 1.0)
        context = tokens * (inputs + middle * (self._outputs[window] - 1.0))
        begun, _ = _overlap(scheduled, first, begin_s, end_s)
        pairs = begun * prefill * (inputs - prefill + 0.5 * prefill)
        prompts = float(begun.sum())
        return (
            float(tokens.sum()) + prompts,
            float(context.sum()),
            prompts,
            float((begun * prefill).sum()),
            float(pairs.sum()),
        )

    def padded_tokens(self, begin_s: Floats, end_s: Floats) -> Floats:
        """Context tokens summed over the steps of stretches, each sequence counted as long as the longest."""
        times = self._clock.times
        done = self._clock.at(times)
        # A sequence's context less the step it is in stays what it was at its first token.
        decoding = self._last > self._first
        begin, end = self._first[decoding], self._last[decoding]
        offset = longest(times, begin, end, self._inputs[decoding] - self._first_step[decoding] + done[-1])
        begun, over = (np.searchsorted(np.sort(edge), times, "right") for edge in (begin, end))
        running = begun - over
        steps = np.diff(done)
        context = np.where(running > 0, offset - done[-1] + done, 0.0)[:-1] + 0.5 * steps
        so_far = np.concatenate([[0.0], np.cumsum(steps * running[:-1] * context)])
        return np.asarray(
            np.interp(end_s, times, so_far) - np.interp(begin_s, times, so_far), dtype=np.float64
        )


def _overlap(begin: Floats, end: Floats, from_: float, to: float) -> tuple[Floats, Floats]:
    """(share of each interval that lies in the stretch, where in the interval the middle of that share is)."""
    length = np.maximum(end - begin, 1e-9)
    low = np.maximum(begin, from_)
    high = np.minimum(end, to)
    share = np.clip((high - low) / length, 0.0, 1.0)
    return share, (0.5 * (low + high) - begin) / length


class _Busy:
    """When one replica had something to do."""

    def __init__(self, requests: Sequence[WatchedRequest]) -> None:
        begins: list[float] = []
        ends: list[float] = []
        for r in sorted(requests, key=lambda r: r.scheduled_s):
            if ends and r.scheduled_s <= ends[-1]:
                ends[-1] = max(ends[-1], r.last_s)
            else:
                begins.append(r.scheduled_s)
                ends.append(r.last_s)
        self._begins, self._ends = np.array(begins), np.array(ends)

    def shares(self, begin_s: Floats, end_s: Floats) -> Floats:
        """Of each stretch."""
        done = np.concatenate([[0.0], np.cumsum(self._ends - self._begins)])
        edges = np.ravel(np.column_stack([self._begins, self._ends]))
        so_far = np.ravel(np.column_stack([done[:-1], done[1:]]))
        busy = np.interp(end_s, edges, so_far) - np.interp(begin_s, edges, so_far)
        return np.asarray(busy / np.maximum(end_s - begin_s, 1e-9), dtype=np.float64)
