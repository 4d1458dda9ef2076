"""Shorter requests first, but none overtakes another that came a set time before it.

The mean wait of shortest first with a promise for the long ones: how far work may shift a place is bounded in
seconds.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView

OVERTAKE_S = 20.0  # 0.5 to 600: by how much an earlier arrival may be overtaken at most
HALF_WORK_S = 5.0  # 0.1 to 120: seconds of work that cost half of that


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """Arrival, later by the work to be done, up to the bound."""
    prefill_s = request.input_tokens / max(1.0, replica.prefill_tokens_per_s)
    work_s = prefill_s + request.predicted_output_tokens * replica.decode_step_s
    return request.arrival_s + OVERTAKE_S * work_s / (work_s + HALF_WORK_S) - 1e9 * request.tier
