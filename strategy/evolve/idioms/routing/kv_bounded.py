"""Join the replica that is estimated to finish the request first, its decode speed bounded by its memory.

The nominal decode speed assumes a full batch. Long prompts fill a small KV cache with a few requests, and then
the batch, and with it the speed, stays small: such a replica gets less than its nominal share.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, Sequence, least_cost

TAIL = 4.0  # 0 to 8: how far outputs run on beyond their prediction; more avoids slow steps
MEMORY_WEIGHT = 1.0  # 0.2 to 5: seats that the KV cache is counted as, against the contexts seen
QUEUE_WEIGHT = 1.0  # 0.2 to 5: how much prefill ahead of the request counts


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The least estimated finish; decode runs at the speed that the KV cache has room for."""
    tokens, output = request.input_tokens, request.predicted_output_tokens
    cached = request.cached_tokens or (0,) * len(replicas)
    costs = [
        r.ready_in_s
        + (QUEUE_WEIGHT * r.waiting_tokens + max(0, tokens - cached[index]))
        / max(1.0, r.prefill_tokens_per_s)
        + (r.outstanding_tokens + output) / _decode_speed(r, tokens, output)
        + TAIL * output * r.decode_step_s
        for index, r in enumerate(replicas)
    ]
    return least_cost(request, replicas, costs)


def _decode_speed(replica: ReplicaView, tokens: int, output: float) -> float:
    """Tokens per second: the nominal speed, or as many contexts as fit into the KV cache, one step each."""
    held = replica.waiting_tokens + tokens + 0.5 * replica.outstanding_tokens + output
    context = held / (replica.running + replica.waiting + 1)
    seats = max(1.0, MEMORY_WEIGHT * replica.kv_capacity_tokens / max(1.0, context))
    return max(1.0, min(replica.decode_tokens_per_s, seats / max(1e-6, replica.decode_step_s)))
