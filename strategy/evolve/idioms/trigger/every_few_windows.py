"""Replan every few windows, and when the cluster changed.

Simple and steady: the layout is never older than its period, whatever the load does.
"""

from strategy.policy_api import Memo, Observation, keep

PERIOD_WINDOWS = 3  # 1 to 16: windows between two plans


def should_replan(obs: Observation, memo: Memo) -> bool:
    """Every few windows, and at once when a replica was lost or devices changed."""
    kept = keep(obs)
    lost = not kept or len(kept) < len(obs.plan.replicas)
    return lost or bool(obs.changes) or obs.ticks_since_replan >= PERIOD_WINDOWS
