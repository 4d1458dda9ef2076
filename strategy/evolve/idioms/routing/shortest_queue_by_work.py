"""Join the queue with the least seconds of work before the request, the start of new replicas included.

Joining the shortest queue is right when all servers and jobs are alike (Winston 1977); with unequal ones,
seconds of work say what counting requests does not.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, Sequence, least_cost

START_WEIGHT = 1.0  # 0.1 to 5: how much the wait for a replica that is not ready counts
SPEED_POWER = 1.0  # 0 to 3: how much more a queue on a slowed down replica counts


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The least work ahead, in seconds."""
    costs = [
        (
            r.waiting_tokens / (r.prefill_tokens_per_s or 1e-9)
            + r.outstanding_tokens / (r.decode_tokens_per_s or 1e-9)
        )
        / (r.speed or 1e-9) ** SPEED_POWER
        + START_WEIGHT * r.ready_in_s
        + 1.0 / (r.decode_tokens_per_s or 1e-9)
        for r in replicas
    ]
    return least_cost(request, replicas, costs)
