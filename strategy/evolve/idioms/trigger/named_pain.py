"""Replan on those pains that a layout can cure: queueing, and too little memory.

Pain as a whole also counts what no layout changes, e.g. that a node is gone; acting on that is restlessness.
"""

from strategy.policy_api import Memo, Observation, keep

QUEUE_LIMIT = 0.5  # 0.05 to 0.98: queueing pain above which the layout is reconsidered
MEMORY_LIMIT = 0.5  # 0.05 to 0.98: memory pain above which it is, too
REST_WINDOWS = 3  # 1 to 12: windows of rest after a change


def should_replan(obs: Observation, memo: Memo) -> bool:
    """On queueing or memory pressure after the rest; at once when a replica was lost or devices changed."""
    kept = keep(obs)
    if not kept or len(kept) < len(obs.plan.replicas) or obs.changes:
        return True
    signals = dict(obs.signals)
    queueing = -signals.get("queueing", 0.0) > QUEUE_LIMIT
    short = -signals.get("memory_pressure", 0.0) > MEMORY_LIMIT
    return (queueing or short) and obs.ticks_since_replan >= REST_WINDOWS
