"""Replan on pain, and then rest.

Two thresholds and a rest keep the layout from swinging to and fro: a change shows its effect only after
replicas have drained and loaded.
"""

from strategy.policy_api import Memo, Observation, keep

PAIN_LIMIT = 0.3  # 0.02 to 0.9: pain above which the layout is reconsidered
REST_WINDOWS = 3  # 1 to 12: windows of rest after a change


def should_replan(obs: Observation, memo: Memo) -> bool:
    """At once when a replica was lost or devices changed; else on pain, after the rest."""
    kept = keep(obs)
    if not kept or len(kept) < len(obs.plan.replicas) or obs.changes:
        return True
    return obs.pain > PAIN_LIMIT and obs.ticks_since_replan >= REST_WINDOWS
