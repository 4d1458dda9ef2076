"""The soonest end, put off by virtual usage: KV cache that is spoken for counts as if it were held.

A replica whose queue will fill its memory preempts later, and what is preempted is computed twice (Llumnix,
Sun et al. 2024).
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, Sequence, largest

TAIL = 4.0  # 0 to 8: how far outputs run on beyond their prediction; more avoids slow steps
PRESSURE = 0.2  # 0.01 to 4: how much later a replica counts whose KV cache is all spoken for


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The least time to finish times virtual usage."""
    tokens, output = request.input_tokens, request.predicted_output_tokens
    steps, need = TAIL * output, tokens + output
    best, least = -1, float("inf")
    for index, r in enumerate(replicas):
        cost = steps * r.decode_step_s + (r.outstanding_tokens + output) / (r.decode_tokens_per_s or 1e-9)
        if cost >= least:
            continue  # what is still to come only adds to it
        cost += (r.waiting_tokens + tokens) / (r.prefill_tokens_per_s or 1e-9) + r.ready_in_s
        capacity = r.kv_capacity_tokens
        if cost < least and capacity > need:
            cost *= 1.0 + PRESSURE * (r.kv_tokens + r.waiting_tokens + r.outstanding_tokens + need) / capacity
            if cost < least:
                best, least = index, cost
    return best if best >= 0 else largest(replicas)
