"""Deal requests out in turns, in proportion to how fast each replica would do them.

Needs no queue to be known, so it cannot be misled by views that are late; what it ignores it cannot correct
(weighted round robin, Katevenis et al. 1991).
"""

from strategy.policy_api import (
    Memo,
    ReplicaView,
    RequestView,
    Sequence,
    count_up,
    throughput_weights,
    weighted_turn,
)

START_WAIT_S = 60.0  # 1 to 600: no turns for who starts so much later than the soonest


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The next one in turn."""
    weights = throughput_weights(request, replicas, START_WAIT_S)
    return weighted_turn(weights, count_up(memo, "turn:" + request.model))
