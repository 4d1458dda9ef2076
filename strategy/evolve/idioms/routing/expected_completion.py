"""Join the replica with the shortest expected completion: queue, own prefill, own decode at its pace.

Backlog alone forgets that a long answer decodes token by token at the replica's own pace: on a slow device
it ends last, however short the queue.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, Sequence, least_cost

QUEUE_WEIGHT = 1.0  # 0.2 to 5: how much the work ahead counts
DECODE_WEIGHT = 1.0  # 0.05 to 5: how much the request's own decode time counts
START_WEIGHT = 1.0  # 0.1 to 5: how much the wait for a replica that is not ready counts


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The least expected completion time, the start of replicas that still load included."""
    tokens, output = request.input_tokens, request.predicted_output_tokens
    cached = request.cached_tokens or (0,) * len(replicas)
    costs = [
        START_WEIGHT * r.ready_in_s
        + QUEUE_WEIGHT * r.waiting_tokens / (r.prefill_tokens_per_s or 1e-9)
        + QUEUE_WEIGHT * r.outstanding_tokens / (r.decode_tokens_per_s or 1e-9)
        + (tokens - min(tokens, cached[index])) / (r.prefill_tokens_per_s or 1e-9)
        + DECODE_WEIGHT * output * r.decode_step_s
        for index, r in enumerate(replicas)
    ]
    return least_cost(request, replicas, costs)
