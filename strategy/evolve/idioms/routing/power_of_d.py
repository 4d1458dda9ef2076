"""Compare a few replicas picked at random instead of all.

With views that are a little old, everyone's best choice is the same one, and it gets crowded; a few random
choices come close to the best without the herd (Mitzenmacher 2001).
"""

from strategy.policy_api import Memo, ReplicaView, RequestView, Sequence, backlog_s, fits, largest

CHOICES = 3  # 2 to 16: replicas that are compared


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The least backlog among a few replicas that the request's number picks."""
    count = len(replicas)
    picks = {int((request.id * 0.618034 + k * 0.414214) % 1.0 * count) for k in range(CHOICES)}
    fitting = sorted(index for index in picks if fits(request, replicas[index]))
    if not fitting:
        fitting = [index for index in range(count) if fits(request, replicas[index])]
    return min(fitting, key=lambda index: backlog_s(replicas[index])) if fitting else largest(replicas)
