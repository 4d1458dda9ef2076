"""Shortest predicted first, with ageing.

Short requests first lower the mean wait; each second of waiting buys a request some of that back, so long
ones are not starved.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView

AGEING = 0.5  # 0.01 to 10: seconds of predicted work that a second of waiting makes up for


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """Predicted work in seconds, less the credit for the time waited."""
    prefill_s = request.input_tokens / max(1.0, replica.prefill_tokens_per_s)
    work_s = prefill_s + request.predicted_output_tokens * replica.decode_step_s
    return work_s + AGEING * request.arrival_s - 1e9 * request.tier
