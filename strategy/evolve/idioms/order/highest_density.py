"""Requests that free the most memory for the least time go first.

The KV cache is what a batch runs short of: a request that holds little of it for a short time lets more run
together (weighted shortest processing time, Smith 1956, with memory as the weight).
"""

from strategy.policy_api import Memo, ReplicaView, RequestView

FOOTPRINT_AGEING = 0.05  # 0.001 to 1: cache share times seconds that a second of waiting makes up for


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """Share of the KV cache times the seconds that it is held, less the credit for the time waited."""
    held = request.input_tokens + 0.5 * request.predicted_output_tokens
    share = held / max(1, replica.kv_capacity_tokens)
    footprint = share * request.predicted_output_tokens * replica.decode_step_s
    return footprint + FOOTPRINT_AGEING * request.arrival_s - 1e9 * request.tier
