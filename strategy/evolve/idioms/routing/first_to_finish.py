"""Join the replica that is estimated to finish the request first, with room for answers that run on.

The predicted answer is a mean; a multiple of it, decoded at the replica's own pace, keeps requests away from
replicas on which a long answer would outlast everything else. The leanest of the routers: one pass.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, Sequence, first_to_finish

TAIL = 4.0  # 0 to 8: how far outputs run on beyond their prediction; more avoids slow steps


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The replica with the soonest estimated end."""
    return first_to_finish(request, replicas, TAIL)
