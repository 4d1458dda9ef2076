"""Go where the prompt is cached, unless that replica is too far behind.

Reusing a cached prefix saves prefill time; a bound on the extra wait keeps a popular prefix from piling up
one queue.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, Sequence, finish_times_s, fits, least_cost

MIN_CACHED_SHARE = 0.3  # 0.05 to 1: share of the prompt that must be cached to follow the prefix
MAX_EXTRA_WAIT_S = 5.0  # 0.1 to 60: how much later the request may be done for its prefix


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The longest cached prefix within the bound, else the soonest done."""
    done_s = finish_times_s(request, replicas)
    soonest = least_cost(request, replicas, done_s)
    best, most = soonest, MIN_CACHED_SHARE * request.input_tokens
    for index, cached in enumerate(request.cached_tokens):
        in_bound = done_s[index] <= done_s[soonest] + MAX_EXTRA_WAIT_S
        if cached > most and in_bound and fits(request, replicas[index]):
            best, most = index, cached
    return best
