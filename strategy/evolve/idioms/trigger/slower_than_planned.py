"""Replan when the last window took much longer than its work does at the pace of the windows before.

An estimate may be wrong for reasons that no feature shows; time per token against its own average is what is
left to go by.
"""

from strategy.policy_api import Memo, Observation, keep

SLOWER = 1.3  # 1.05 to 4: time per token against its average above which to replan
PACE_MEMORY = 0.7  # 0.1 to 0.95: share that the past keeps in the average pace
REST_WINDOWS = 2  # 1 to 12: windows of rest after a change


def should_replan(obs: Observation, memo: Memo) -> bool:
    """When the pace fell off after the rest; at once when a replica was lost or devices changed."""
    kept = keep(obs)
    tokens = sum(d.finished * (d.input_tokens_mean + d.output_tokens_mean) for d in obs.demand)
    pace = obs.last_serving_s / tokens if tokens > 0 else 0.0
    average = memo.get("pace", pace)
    if pace > 0:
        memo["pace"] = PACE_MEMORY * average + (1.0 - PACE_MEMORY) * pace
    if not kept or len(kept) < len(obs.plan.replicas) or obs.changes:
        return True
    return pace > SLOWER * average and obs.ticks_since_replan >= REST_WINDOWS
