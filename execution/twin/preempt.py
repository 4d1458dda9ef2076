"""What happens when KV blocks run out: the running sequence of least priority gives its memory up.

The rare path of the engine, so it may look at every sequence. As in vLLM V1, running sequences get their
blocks in order of admission; where one cannot, the sequence with the highest (priority, arrival) is preempted,
even itself, until it can. What was preempted waits among its class, ahead of later arrivals, and is recomputed:
prompt and generated tokens are prefilled again.
"""

from __future__ import annotations

from heapq import heapify
from typing import TYPE_CHECKING

from execution.twin.sequence import Sequence

if TYPE_CHECKING:
    from execution.twin.batch import Batch


def make_room(batch: Batch) -> bool:
    """Preempt until the next iteration's running sequences have their blocks. True: nobody had to go."""
    step = batch.step
    batch.reconcile()
    free = batch.free_blocks()
    running = sorted((entry[2] for entry in batch.finishing), key=lambda seq: seq.admitted)
    decoding = set(running)
    if batch.partial is not None:
        running.append(batch.partial)
    served: list[tuple[Sequence, int]] = []
    preempted = False
    while running:
        seq = running[0]
        need = _need(batch, seq, seq in decoding, len(served))
        if need <= free:
            free -= need
            served.append((seq, need))
            running.pop(0)
            continue
        preempted = True
        victim = max((*(seq for seq, _ in served), *running), key=_least)
        for i, (other, taken) in enumerate(served):
            if other is victim:
                free += taken
                del served[i]
                break
        else:
            running.remove(victim)
        before = batch.free_blocks()
        if victim in decoding:
            victim.generated = victim.request.output_tokens - (victim.finish_step - step)
            batch.drop_decode(victim)
        else:
            batch.drop_partial(victim)
        free += batch.free_blocks() - before
    if preempted:
        heapify(batch.finishing)
    return not preempted


def _least(seq: Sequence) -> tuple[float, float, int]:
    return (seq.priority, seq.request.arrival_s, seq.number)


def _need(batch: Batch, seq: Sequence, decoding: bool, served: int) -> int:  # noqa: FBT001 - private
    """New blocks that the sequence takes in the next iteration."""
    if decoding:
        return 1 if (seq.offset + batch.step) & 15 == 0 else 0
    chunk = min(seq.target - seq.computed, batch.max_batched - served)
    return max(0, ((seq.computed + chunk + 15) >> 4) - seq.blocks)
