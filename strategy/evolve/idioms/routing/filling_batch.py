"""Estimate the step that the replica will have with the request on board, not the one it has now.

When many requests are released together, all replicas look idle; the step grows with each request that was
given to a replica, and a small KV cache bounds how many of them run at once.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, Sequence, largest

TAIL = 3.0  # 0 to 8: how far outputs run on beyond their prediction; more avoids slow steps
CROWD = 1.0  # 0.05 to 4: how much of the full batch's step the requests already there bring about


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The least estimated end: prompts ahead, and answers at the pace of the batch to come."""
    tokens, output = request.input_tokens, request.predicted_output_tokens
    steps, need = TAIL * output, tokens + output
    best, least = -1, float("inf")
    for index, r in enumerate(replicas):
        cost = steps * r.decode_step_s + (r.waiting_tokens + tokens) / (r.prefill_tokens_per_s or 1e-9)
        if cost >= least or r.kv_capacity_tokens <= need:
            continue  # what is still to come only adds to it
        count = r.running + r.waiting + 1
        seats = r.kv_capacity_tokens * count / (r.kv_tokens + r.waiting_tokens + need)
        seats = seats if seats < r.max_num_seqs else r.max_num_seqs
        crowd = CROWD * (count / seats if count < seats else 1.0)
        step_s = r.decode_step_s
        slower_s = seats / (r.decode_tokens_per_s or 1e-9) - step_s
        if slower_s > 0.0:
            step_s += crowd * slower_s
        cost += r.ready_in_s + (r.outstanding_tokens + output) / seats * step_s
        if cost < least:
            best, least = index, cost
    return best if best >= 0 else largest(replicas)
