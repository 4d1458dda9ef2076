"""Least slack to the first token's deadline first.

Who can still make it only just goes before who has time (least slack, Mok 1983; earliest deadline first, Liu
and Layland 1973): a long prompt must start sooner to answer in time.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView

DEADLINE_S = 10.0  # 0.5 to 120: seconds within which the first token is due
TIER_SLACK_S = 5.0  # 0 to 120: how much sooner it is due for each tier
PREFILL_WEIGHT = 1.0  # 0 to 5: how much of the prompt's own prefill time is set aside


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """When the prompt must start at the latest."""
    prefill_s = request.input_tokens / max(1.0, replica.prefill_tokens_per_s)
    due_s = request.arrival_s + DEADLINE_S - TIER_SLACK_S * request.tier
    return due_s - PREFILL_WEIGHT * prefill_s
