"""Send long prompts where the memory is, short ones where the queue is short.

A small KV cache holds few long contexts, so its batch stays small and its speed is wasted; a large one runs
them together.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, Sequence, finish_times_s, least_cost

TAIL = 4.0  # 0 to 8: how far outputs run on beyond their prediction; more avoids slow steps
SEATS = 8.0  # 1 to 64: contexts like the request's own that a replica should be able to hold
CRAMPED_FACTOR = 1.0  # 0.05 to 10: how much later a replica counts that can hold one only


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The soonest end, put off where the KV cache holds only few contexts of this length."""
    wanted = SEATS * (request.input_tokens + request.predicted_output_tokens)
    costs = [
        done_s * (1.0 + CRAMPED_FACTOR * max(0.0, 1.0 - r.kv_capacity_tokens / wanted))
        for r, done_s in zip(replicas, finish_times_s(request, replicas, TAIL), strict=True)
    ]
    return least_cost(request, replicas, costs)
