"""Score replicas by time to finish, KV use, batch size and prefix, with weights.

What gateways do by hand-set weights, here with weights that evolution sets for the load of the hour.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, Sequence, finish_times_s, least_cost

KV_WEIGHT_S = 1.0  # 0.01 to 60: seconds that a full KV cache counts as
BATCH_WEIGHT_S = 0.5  # 0.01 to 60: seconds that a full batch counts as
START_WEIGHT = 1.0  # 0.1 to 5: how much a second of waiting for a start counts
PREFIX_WEIGHT = 1.0  # 0.1 to 5: how much a second of prefill saved by the prefix cache counts


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The least weighted sum, in seconds."""
    done_s = finish_times_s(request, replicas)
    cached = request.cached_tokens or (0,) * len(replicas)
    costs = [
        done_s[index]
        + KV_WEIGHT_S * r.kv_tokens / max(1, r.kv_capacity_tokens)
        + BATCH_WEIGHT_S * (r.running + r.waiting) / max(1, r.max_num_seqs)
        + (START_WEIGHT - 1.0) * r.ready_in_s
        - PREFIX_WEIGHT * cached[index] / max(1.0, r.prefill_tokens_per_s)
        for index, r in enumerate(replicas)
    ]
    return least_cost(request, replicas, costs)
