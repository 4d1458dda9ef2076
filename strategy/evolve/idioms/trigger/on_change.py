"""Replan only when the cluster changed.

A layout that fits is not worth disturbing: every new replica loads its weights while requests wait.
"""

from strategy.policy_api import Memo, Observation, keep


def should_replan(obs: Observation, memo: Memo) -> bool:
    """When devices came or went, or a replica was lost."""
    kept = keep(obs)
    return not kept or len(kept) < len(obs.plan.replicas) or bool(obs.changes)
