"""Longest processing time first.

When a window counts as done with its last request, long ones started late are what everyone waits for
(Graham 1969).
"""

from strategy.policy_api import Memo, ReplicaView, RequestView

FAIRNESS = 1.0  # 0.001 to 100: tokens of predicted output that a second of waiting counts as


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """The most predicted output tokens first; waiting counts too, so that nobody is starved."""
    return FAIRNESS * request.arrival_s - request.predicted_output_tokens - 1e9 * request.tier
