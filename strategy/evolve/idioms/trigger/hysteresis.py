"""Replan above a high mark of load, and not again before it was below a low one or has grown further.

One threshold makes the layout swing to and fro when the load plays around it; two thresholds with a memory
of the side last seen do not (Schmitt 1938).
"""

from strategy.policy_api import Memo, Observation, keep, loads, plan_makespan_s

HIGH = 1.0  # 0.3 to 4: serving time against the window's length above which to replan
LOW = 0.5  # 0.05 to 0.95: share of the high mark below which the trigger is armed again
GROWTH = 1.5  # 1.1 to 4: growth since the last replan that also arms it


def should_replan(obs: Observation, memo: Memo) -> bool:
    """When the load crosses the high mark while armed; at once when a replica was lost."""
    kept = keep(obs)
    if not kept or len(kept) < len(obs.plan.replicas) or obs.changes:
        return True
    pressure = plan_makespan_s(obs, kept, loads(obs)) / obs.window_s
    tripped_at = memo.get("tripped_at", 0.0)
    if pressure < LOW * HIGH:
        memo["tripped_at"] = 0.0
    elif pressure > HIGH and pressure > GROWTH * tripped_at:
        memo["tripped_at"] = pressure
        return True
    return False
