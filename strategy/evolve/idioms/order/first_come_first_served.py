"""First come, first served within a tier.

Nobody waits for ever, and the time to the first token is fair.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, first_come


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """First come, first served within a tier."""
    return first_come(request)
