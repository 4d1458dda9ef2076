"""Who lost a replica goes first, then higher tiers, then first come.

A request that starts again has waited twice already, and is the likeliest to miss its objective.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, first_come

RETRY_CREDIT_S = 120.0  # 1 to 3600: head start for each replica that was lost


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """First come, first served, with a head start for lost replicas."""
    return first_come(request) - RETRY_CREDIT_S * request.retries
