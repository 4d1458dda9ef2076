"""Join the replica that is estimated to finish the request first.

Seconds of work, not numbers of requests: a slow device of a mixed cluster gets what it can do and no more.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, Sequence, least_backlog


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The replica with the least estimated backlog, in seconds."""
    return least_backlog(request, replicas)
