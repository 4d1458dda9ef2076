"""Join the replica that is estimated to finish the request first.

Seconds of work, not numbers of requests: a slow device of a mixed cluster gets what it can do and no more.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, Sequence, backlog_s, least_cost, work_s


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The replica with the least estimated backlog, this request included, in seconds."""
    costs = [backlog_s(r) + work_s(request, r) for r in replicas]
    return least_cost(request, replicas, costs)
