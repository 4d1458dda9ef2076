"""Most work first, prompt and answer together.

As longest first, for loads where prompts differ as much as answers do.
"""

from strategy.policy_api import Memo, ReplicaView, RequestView

FAIRNESS_S = 0.1  # 0.001 to 10: seconds of work that a second of waiting counts as
PROMPT_WEIGHT = 1.0  # 0.05 to 5: how much a second of prefill counts against a second of decode


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """The most predicted seconds of work first; waiting counts too."""
    prefill_s = request.input_tokens / max(1.0, replica.prefill_tokens_per_s)
    decode_s = request.predicted_output_tokens * replica.decode_step_s
    work_s = PROMPT_WEIGHT * prefill_s + decode_s
    return FAIRNESS_S * request.arrival_s - work_s - 1e9 * request.tier
