"""Longest prompt first, with a bound on how far that goes.

Prompts are the work that is known: taken longest first, they fill the replicas evenly by the time the short
ones come (longest processing time, Graham 1969, by what can be seen).
"""

from strategy.policy_api import Memo, ReplicaView, RequestView

PROMPT_HEAD_START_S = 0.01  # 0.0001 to 1: seconds of head start for each prompt token
LARGEST_HEAD_START_S = 60.0  # 1 to 600: the most that any request gets


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """Arrival, with a head start for the length of the prompt."""
    head_start_s = min(LARGEST_HEAD_START_S, PROMPT_HEAD_START_S * request.input_tokens)
    return request.arrival_s - head_start_s - 1e9 * request.tier
