"""Keep requests away from replicas that run below their nominal speed.

A device that throttles or straggles has already cost its queue time, and is likelier than others to slow
down further while the request is on it.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, Sequence, finish_times_s, least_cost

TAIL = 4.0  # 0 to 8: how far outputs run on beyond their prediction; more avoids slow steps
SLOW_POWER = 1.0  # 0.1 to 4: how much later a replica counts for each halving of its speed


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The soonest end, put off by the speed that is missing."""
    costs = [
        done_s / (r.speed or 1e-9) ** SLOW_POWER
        for r, done_s in zip(replicas, finish_times_s(request, replicas, TAIL), strict=True)
    ]
    return least_cost(request, replicas, costs)
