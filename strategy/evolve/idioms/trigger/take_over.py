"""Replan at take-over, and then only when the cluster changed.

A policy that has just taken over finds its predecessor's layout; with an empty memo it makes its own once,
and then leaves it alone.
"""

from strategy.policy_api import Memo, Observation, keep


def should_replan(obs: Observation, memo: Memo) -> bool:
    """At the first monitoring point that this policy sees, and when devices came, went or were lost."""
    first = memo.get("adopted", 0.0) == 0.0
    memo["adopted"] = 1.0
    kept = keep(obs)
    return first or not kept or len(kept) < len(obs.plan.replicas) or bool(obs.changes)
