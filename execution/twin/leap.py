"""Closed forms of a run of decode steps: how long k of them take, which one is in progress, how many fit.

Between two changes of its batch, an engine decodes the same `n` sequences again and again. Step j (from 0)
costs `base + slope * (kv + n * j)`, so k steps take `a * k**2 + b * k`. Of KV blocks, a sequence needs a new
one whenever its context is a multiple of the block size: with `phases[p]` counting the sequences whose context
minus step counter is p modulo 16, the demand of any run of steps is exact without looking at a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCK_TOKENS = 16
"""KV tokens in one block, vLLM's default."""


def steps_by(elapsed_s: float, a: float, b: float) -> float:
    """Real-valued k at which `a * k**2 + b * k == elapsed_s` (a >= 0, b > 0)."""
    return 2.0 * elapsed_s / (b + math.sqrt(b * b + 4.0 * a * elapsed_s))


def held_blocks(kv_tokens: int, phases: Sequence[int], step: int) -> int:
    """Blocks that decoding sequences hold: the sum over them of ceil(context / 16)."""
    padding = 0
    for phase, count in enumerate(phases):
        if count:
            padding += count * (-(phase + step) & 15)
    return (kv_tokens + padding) >> 4


def steps_within(free_blocks: int, n: int, phases: Sequence[int], step: int) -> int:
    """Most decode steps from `step` on whose new blocks fit into `free_blocks`."""
    cycles, left = divmod(free_blocks, n)
    steps = cycles * BLOCK_TOKENS
    for ahead in range(BLOCK_TOKENS):
        left -= phases[-(step + ahead) & 15]
        if left < 0:
            break
        steps += 1
    return steps
