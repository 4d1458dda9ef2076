"""Compare a few replicas picked in proportion to their speed.

Picking evenly wastes choices on slow devices of a mixed cluster; picking by speed keeps the few comparisons
where the capacity is (Mitzenmacher 2001; weighted as in Mukhopadhyay and Mazumdar 2016).
"""

from strategy.policy_api import (
    Memo,
    ReplicaView,
    RequestView,
    Sequence,
    backlog_s,
    first_to_finish,
    fits,
    throughput_weights,
    weighted_turn,
    work_s,
)

CHOICES = 4  # 2 to 16: replicas that are compared
TAIL = 4.0  # 0 to 8: how far outputs run on beyond their prediction; more avoids slow steps


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The soonest end among a few replicas that the request's number picks by weight."""
    weights = throughput_weights(request, replicas)
    picks = {weighted_turn(weights, float(CHOICES * request.id + k)) for k in range(CHOICES)}
    output = request.predicted_output_tokens
    fitting = sorted(index for index in picks if fits(request, replicas[index]))
    if not fitting:
        return first_to_finish(request, replicas, TAIL)
    return min(
        fitting,
        key=lambda index: (
            backlog_s(replicas[index])
            + work_s(request, replicas[index])
            + TAIL * output * replicas[index].decode_step_s
        ),
    )
