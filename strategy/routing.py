"""Which replica, in what order: the building blocks of `route` and `priority`.

They run for every request over all replicas of its model, so each is one lean pass over the views.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from loop.contracts.observation import ReplicaView, RequestView
from loop.contracts.ports import Memo

_STUCK = 1e-9
"""Stands for a speed of zero, so that a stuck replica is the last choice and no error."""
_GOLDEN = 0.6180339887498949


def work_s(request: RequestView, replica: ReplicaView, cached_tokens: int = 0) -> float:
    """Time of a well-filled replica that a request is estimated to cost."""
    prefill = max(0, request.input_tokens - cached_tokens) / (replica.prefill_tokens_per_s or _STUCK)
    return prefill + request.predicted_output_tokens / (replica.decode_tokens_per_s or _STUCK)


def backlog_s(replica: ReplicaView) -> float:
    """Estimated time until a replica has drained what it holds, the wait until it serves included."""
    return (
        replica.ready_in_s
        + replica.waiting_tokens / (replica.prefill_tokens_per_s or _STUCK)
        + replica.outstanding_tokens / (replica.decode_tokens_per_s or _STUCK)
    )


def fits(request: RequestView, replica: ReplicaView) -> bool:
    """Whether the request's predicted context fits into the replica's KV cache."""
    return replica.kv_capacity_tokens > request.input_tokens + request.predicted_output_tokens


def finish_times_s(request: RequestView, replicas: Sequence[ReplicaView], tail: float = 1.0) -> list[float]:
    """When each replica is estimated to have done the request, nothing cached: its backlog, the request's
    work, and the steps of the request's own output, which no other request can shorten.

    `tail` multiplies those steps: outputs run on to several times the prediction, and then a replica with slow
    steps holds up everybody who waits for the last one.
    """
    tokens, output = request.input_tokens, request.predicted_output_tokens
    steps = tail * output
    return [
        r.ready_in_s
        + (r.waiting_tokens + tokens) / (r.prefill_tokens_per_s or _STUCK)
        + (r.outstanding_tokens + output) / (r.decode_tokens_per_s or _STUCK)
        + steps * r.decode_step_s
        for r in replicas
    ]


def throughput_weights(
    request: RequestView, replicas: Sequence[ReplicaView], start_wait_s: float = float("inf")
) -> list[float]:
    """How many requests like this one each replica does per second; 0 where it does not fit, or where the
    replica serves only `start_wait_s` later than the soonest."""
    tokens, output = request.input_tokens, max(1.0, request.predicted_output_tokens)
    need = tokens + output
    weights: list[float] = []
    add = weights.append
    starting = False
    known_prefill = known_decode = -1.0
    weight = 0.0
    for r in replicas:
        prefill, decode = r.prefill_tokens_per_s, r.decode_tokens_per_s
        # Neighbours are often of one kind, and then weigh the same.
        if prefill != known_prefill or decode != known_decode:
            known_prefill, known_decode = prefill, decode
            weight = 1.0 / (tokens / (prefill or _STUCK) + output / (decode or _STUCK))
        if r.ready_in_s:
            starting = True
        add(weight if r.kv_capacity_tokens > need else 0.0)
    if starting:
        waits = [r.ready_in_s for r in replicas if r.kv_capacity_tokens > need]
        latest_s = min(waits, default=0.0) + start_wait_s
        return [
            weight if r.ready_in_s <= latest_s else 0.0 for weight, r in zip(weights, replicas, strict=True)
        ]
    return weights


def prefill_times_s(request: RequestView, replicas: Sequence[ReplicaView]) -> list[float]:
    """When each replica is estimated to have done the request's prompt, prompts before it included."""
    tokens = request.input_tokens
    return [r.ready_in_s + (r.waiting_tokens + tokens) / (r.prefill_tokens_per_s or _STUCK) for r in replicas]


def least_cost(request: RequestView, replicas: Sequence[ReplicaView], costs: Sequence[float]) -> int:
    """Index of the least cost, of the replicas that can hold the request; the one with the most KV capacity
    when none can."""
    need = request.input_tokens + request.predicted_output_tokens
    best, least = -1, float("inf")
    for index, cost in enumerate(costs):
        if cost < least and replicas[index].kv_capacity_tokens > need:
            best, least = index, cost
    return best if best >= 0 else largest(replicas)


def first_to_finish(request: RequestView, replicas: Sequence[ReplicaView], tail: float = 1.0) -> int:
    """Index of the replica that is estimated to finish the request first (see `finish_times_s`), of those
    that can hold it; the one with the most KV capacity when none can."""
    tokens, output = request.input_tokens, request.predicted_output_tokens
    steps, need = tail * output, tokens + output
    best, least = -1, float("inf")
    for index, r in enumerate(replicas):
        # Term by term, and no further than it takes to lose: no term is negative.
        cost = steps * r.decode_step_s
        if cost >= least:
            continue
        cost += (r.outstanding_tokens + output) / (r.decode_tokens_per_s or _STUCK)
        if cost >= least:
            continue
        cost += (r.waiting_tokens + tokens) / (r.prefill_tokens_per_s or _STUCK) + r.ready_in_s
        if cost < least and r.kv_capacity_tokens > need:
            best, least = index, cost
    return best if best >= 0 else largest(replicas)


def weighted_turn(weights: Sequence[float], turn: float) -> int:
    """Whose turn it is when each index gets turns in proportion to its weight: turn 0, 1, 2... are spread
    evenly by the golden ratio (the Kronecker sequence), so it needs no state but the number of the turn."""
    sums = list(accumulate(weights))
    if not sums or sums[-1] <= 0:
        return int(turn) % max(1, len(sums))
    return min(bisect_right(sums, turn * _GOLDEN % 1.0 * sums[-1]), len(sums) - 1)


def count_up(memo: Memo, name: str) -> float:
    """The value of a counter in the memo, starting at 0, which is then one higher."""
    turn = memo.get(name, 0.0)
    memo[name] = turn + 1.0
    return turn


def largest(replicas: Sequence[ReplicaView]) -> int:
    """Index of the replica with the most KV capacity."""
    return max(range(len(replicas)), key=lambda index: replicas[index].kv_capacity_tokens)


def first_come(request: RequestView) -> float:
    """Priority by tier, then by arrival: no request of a tier is overtaken for ever."""
    return request.arrival_s - 1e9 * request.tier
