"""Shortest prompt first, with ageing.

The prompt's length is known, the answer's is not; for the time to the first token only the prompts ahead
count.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView

PROMPT_AGEING = 0.5  # 0.01 to 10: seconds of prefill that a second of waiting makes up for


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """Seconds of prefill, less the credit for the time waited."""
    prefill_s = request.input_tokens / max(1.0, replica.prefill_tokens_per_s)
    return prefill_s + PROMPT_AGEING * request.arrival_s - 1e9 * request.tier
