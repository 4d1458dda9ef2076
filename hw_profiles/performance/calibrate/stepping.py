"""A minimal engine that steps through a log: continuous batching, for fitting overheads only.

First come first served unless told otherwise, running sequences first, prompts in chunks within the token budget, as vLLM's
scheduler does it; no preemption, and of a prefix cache only what it is told. The twin is the full simulator; this one exists since
calibration may not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from hw_profiles.performance.replica import ReplicaPerformance


@dataclass(slots=True)
class _Sequence:
    index: int
    prompt: int
    output: int
    computed: int = 0
    generated: int = 0


_Queue = list[tuple[float, int, _Sequence]]
"""A heap of (rank, order of arrival, sequence)."""


def step_through(
    perf: ReplicaPerformance,
    requests: Sequence[tuple[float, int, int]],
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    cached_tokens: Sequence[int] | None = None,
    kv_capacity_tokens: float = math.inf,
    order: Sequence[float] | None = None,
) -> list[tuple[float, float]]:
    """(first token, last token) times of requests given as (queued_s ascending, prompt, output tokens).

    `cached_tokens`: of each prompt, what a prefix cache held already (None: nothing). `kv_capacity_tokens`: no
    prompt is admitted beyond it; whoever is admitted stays. `order`: who is admitted first of those that wait, the
    lowest (None: first come).
    """
    done = [(0.0, 0.0)] * len(requests)
    first = [0.0] * len(requests)
    waiting: _Queue = []
    running: list[_Sequence] = []
    now_s, arrived = 0.0, 0
    while arrived < len(requests) or waiting or running:
        if not waiting and not running:
            now_s = max(now_s, requests[arrived][0])
        while arrived < len(requests) and requests[arrived][0] <= now_s:
            _, prompt, output = requests[arrived]
            computed = cached_tokens[arrived] if cached_tokens is not None else 0
            rank = order[arrived] if order is not None else 0.0
            heappush(waiting, (rank, arrived, _Sequence(arrived, prompt, output, computed)))
            arrived += 1
        if running and not waiting and all(s.computed >= s.prompt for s in running):
            next_s = requests[arrived][0] if arrived < len(requests) else math.inf
            now_s = _leap(perf, running, now_s, next_s)
            running = _without_finished(running, first, done, now_s)
            continue
        room = kv_capacity_tokens - sum(s.prompt + s.generated for s in running)
        chunks = _schedule(running, waiting, max_num_seqs, max_num_batched_tokens, room)
        chunked = {sequence.index for sequence, _ in chunks}
        decoding = [s for s in running if s.index not in chunked and s.computed >= s.prompt]
        now_s += perf.iteration_s(
            len(decoding),
            _attended(perf, decoding),
            [(size, sequence.computed) for sequence, size in chunks],
        )
        for sequence in decoding:
            sequence.generated += 1
        for sequence, size in chunks:
            sequence.computed += size
            if sequence.computed >= sequence.prompt:
                sequence.generated = 1
                first[sequence.index] = now_s
        running = _without_finished(running, first, done, now_s)
    return done


def _leap(perf: ReplicaPerformance, running: Sequence[_Sequence], now_s: float, next_s: float) -> float:
    """Decode in one go, up to the next finish, the next arrival or the end of a linear piece: when that is."""
    n, kv = len(running), _attended(perf, running)
    base_s, slope, end = perf.decode_segment(n, kv)
    a = 0.5 * slope * n
    b = base_s + slope * kv - a  # k steps take a * k**2 + b * k
    k = min(s.output - s.generated for s in running)
    if kv + n * (k - 1) >= end:
        k = max(1, math.ceil((end - kv) / n))
    wait_s = next_s - now_s
    if (a * k + b) * k > wait_s:
        root = (math.sqrt(b * b + 4.0 * a * wait_s) - b) / (2.0 * a) if a > 0.0 else wait_s / b
        k = min(k, int(root) + 2)
        while k > 1 and (a * (k - 1) + b) * (k - 1) >= wait_s:  # the k-th step would begin after the arrival
            k -= 1
    for sequence in running:
        sequence.generated += k
    return now_s + (a * k + b) * k


def _attended(perf: ReplicaPerformance, decoding: Sequence[_Sequence]) -> int:
    """Tokens of context that a step pays for: the longest for each sequence where attention is padded."""
    if perf.padded:
        return len(decoding) * max((s.prompt + s.generated for s in decoding), default=0)
    return sum(s.prompt + s.generated for s in decoding)


def _without_finished(
    running: Sequence[_Sequence], first: Sequence[float], done: list[tuple[float, float]], now_s: float
) -> list[_Sequence]:
    """Note who has its last token."""
    for sequence in running:
        if sequence.generated >= sequence.output:
            done[sequence.index] = (first[sequence.index], now_s)
    return [s for s in running if s.generated < s.output]


def _schedule(
    running: list[_Sequence], waiting: _Queue, max_num_seqs: int, budget: int, room: float
) -> list[tuple[_Sequence, int]]:
    """Prompt chunks of the next iteration; admits waiting sequences into `running`."""
    budget -= sum(1 for s in running if s.computed >= s.prompt)
    chunks = []
    for sequence in running:
        left = sequence.prompt - sequence.computed
        if left > 0 and budget > 0:
            chunks.append((sequence, min(left, budget)))
            budget -= chunks[-1][1]
    while waiting and budget > 0 and len(running) < max_num_seqs:
        if running and waiting[0][2].prompt > room:
            break
        sequence = heappop(waiting)[2]
        room -= sequence.prompt
        running.append(sequence)
        chunks.append((sequence, min(sequence.prompt - sequence.computed, budget)))
        budget -= chunks[-1][1]
    return chunks
