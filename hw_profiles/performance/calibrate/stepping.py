"""A minimal engine that steps through a log: continuous batching, for fitting overheads only.

First come first served, running sequences first, prompts in chunks within the token budget, as vLLM's
scheduler does it; no preemption and no prefix cache. The twin is the full simulator; this one exists since
calibration may not depend on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from hw_profiles.performance.replica import ReplicaPerformance


@dataclass(slots=True)
class _Sequence:
    index: int
    prompt: int
    output: int
    computed: int = 0
    generated: int = 0


def step_through(
    perf: ReplicaPerformance,
    requests: Sequence[tuple[float, int, int]],
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
) -> list[tuple[float, float]]:
    """(first token, last token) times of requests given as (queued_s ascending, prompt, output tokens)."""
    done = [(0.0, 0.0)] * len(requests)
    first = [0.0] * len(requests)
    waiting: deque[_Sequence] = deque()
    running: list[_Sequence] = []
    now_s, arrived = 0.0, 0
    while arrived < len(requests) or waiting or running:
        if not waiting and not running:
            now_s = max(now_s, requests[arrived][0])
        while arrived < len(requests) and requests[arrived][0] <= now_s:
            _, prompt, output = requests[arrived]
            waiting.append(_Sequence(arrived, prompt, output))
            arrived += 1
        chunks = _schedule(running, waiting, max_num_seqs, max_num_batched_tokens)
        chunked = {sequence.index for sequence, _ in chunks}
        decoding = [s for s in running if s.index not in chunked and s.computed >= s.prompt]
        now_s += perf.iteration_s(
            len(decoding),
            sum(s.prompt + s.generated for s in decoding),
            [(size, sequence.computed) for sequence, size in chunks],
        )
        for sequence in decoding:
            sequence.generated += 1
        for sequence, size in chunks:
            sequence.computed += size
            if sequence.computed >= sequence.prompt:
                sequence.generated = 1
                first[sequence.index] = now_s
        for sequence in running:
            if sequence.generated >= sequence.output:
                done[sequence.index] = (first[sequence.index], now_s)
        running = [s for s in running if s.generated < s.output]
    return done


def _schedule(
    running: list[_Sequence], waiting: deque[_Sequence], max_num_seqs: int, budget: int
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
        sequence = waiting.popleft()
        running.append(sequence)
        chunks.append((sequence, min(sequence.prompt, budget)))
        budget -= chunks[-1][1]
    return chunks
