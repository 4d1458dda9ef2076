"""Higher tiers earlier by a head start, not absolutely.

Absolute tiers starve the standard class in a burst; a head start in seconds bounds what it loses.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView

HEAD_START_S = 30.0  # 0.1 to 600: how much earlier a request of the next tier counts as arrived
RETRY_HEAD_START_S = 10.0  # 0.1 to 600: the same for each time that a request lost its replica


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """Arrival, with a head start for each tier and each retry."""
    return request.arrival_s - HEAD_START_S * request.tier - RETRY_HEAD_START_S * request.retries
