"""Replan when the number of requests has moved to another power of a base.

Layouts differ between few and many requests, not between 900 and 1,000; steps on a logarithmic scale with a
dead band between them ignore the noise of a load.
"""

import math

from strategy.policy_api import Memo, Observation, keep, loads

STEP = 2.0  # 1.2 to 8: factor between two steps of load
DEAD_BAND = 0.25  # 0 to 0.5: share of a step that the load must have gone beyond the boundary


def should_replan(obs: Observation, memo: Memo) -> bool:
    """When the load has clearly left its step, and when a replica was lost or devices changed."""
    kept = keep(obs)
    level = math.log(1.0 + sum(load.requests for load in loads(obs))) / math.log(STEP)
    step = memo.get("load_step", -1.0)
    lost = not kept or len(kept) < len(obs.plan.replicas) or bool(obs.changes)
    if lost or not step - DEAD_BAND <= level <= step + 1.0 + DEAD_BAND:
        memo["load_step"] = float(math.floor(level))
        return True
    return False
