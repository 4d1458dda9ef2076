"""Requests whose prefix is cached go together, before what is cached is pushed out.

A cached prefix is worth its prefill only as long as it stays: served one after the other, requests of one
prefix find it, spread out they do not.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView

CACHE_HEAD_START_S = 10.0  # 0.1 to 120: head start of a prompt that is cached as a whole


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """Arrival, with a head start for the share of the prompt that is cached somewhere."""
    share = max(request.cached_tokens, default=0) / max(1, request.input_tokens)
    return request.arrival_s - CACHE_HEAD_START_S * min(1.0, share) - 1e9 * request.tier
