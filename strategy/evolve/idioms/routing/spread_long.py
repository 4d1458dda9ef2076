"""Spread long requests evenly first, and let short ones fill the gaps.

Two long answers on one replica end one after the other in memory and in time; short ones fit anywhere
(bin packing by size classes, Johnson 1974).
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, Sequence, finish_times_s, least_cost

TAIL = 4.0  # 0 to 8: how far outputs run on beyond their prediction; more avoids slow steps
LONG_TOKENS = 4000.0  # 200 to 60000: prompt and predicted answer from which a request is long
CROWDING_S = 2.0  # 0.05 to 60: seconds that a full KV cache counts as, for a long request


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The soonest end; for long requests, memory that is spoken for counts too."""
    done_s = finish_times_s(request, replicas, TAIL)
    size = request.input_tokens + request.predicted_output_tokens
    if size < LONG_TOKENS:
        return least_cost(request, replicas, done_s)
    costs = [
        done_s[index]
        + CROWDING_S
        * (r.kv_tokens + r.waiting_tokens + r.outstanding_tokens + size)
        / (r.kv_capacity_tokens or 1)
        for index, r in enumerate(replicas)
    ]
    return least_cost(request, replicas, costs)
