"""Join the replica that is estimated to finish the request first, its decode speed bounded by its memory.

The nominal decode speed assumes a full batch. Long prompts fill a small KV cache with a few requests, and then
the batch, and with it the speed, stays small: such a replica gets less than its nominal share.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, Sequence, largest

TAIL = 4.0  # 0 to 8: how far outputs run on beyond their prediction; more avoids slow steps
MEMORY_WEIGHT = 1.0  # 0.2 to 5: seats that the KV cache is counted as, against the contexts seen
QUEUE_WEIGHT = 1.0  # 0.2 to 5: how much prefill ahead of the request counts


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The least estimated finish; decode runs at the speed that the KV cache has room for."""
    tokens, output = request.input_tokens, request.predicted_output_tokens
    steps, need = TAIL * output, tokens + output
    best, least = -1, float("inf")
    for index, r in enumerate(replicas):
        cost = steps * r.decode_step_s
        decode_s = (r.outstanding_tokens + output) / (r.decode_tokens_per_s or 1e-9)
        if cost + decode_s >= least or r.kv_capacity_tokens <= need:
            continue  # memory can only slow it down further
        prefill = r.prefill_tokens_per_s or 1e-9
        cached = request.cached_tokens[index] if request.cached_tokens else 0
        cost += r.ready_in_s + (QUEUE_WEIGHT * r.waiting_tokens + tokens - min(cached, tokens)) / prefill
        if cost + decode_s >= least:
            continue
        held = r.waiting_tokens + 0.5 * r.outstanding_tokens + need
        seats = MEMORY_WEIGHT * r.kv_capacity_tokens * (r.running + r.waiting + 1) / held
        bounded_s = (r.outstanding_tokens + output) * r.decode_step_s / (seats if seats > 1.0 else 1.0)
        cost += bounded_s if bounded_s > decode_s else decode_s
        if cost < least:
            best, least = index, cost
    return best if best >= 0 else largest(replicas)
