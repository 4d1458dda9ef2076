"""Replan when the time that a new layout saves outweighs what the change costs.

A change pays only if the load stays long enough: the saving of one window, times the windows that it is
expected to last, is held against the stall of drained and loading replicas.
"""

from strategy.policy_api import (
    Memo,
    Observation,
    Plan,
    fill,
    keep,
    loads,
    plan_serving_s,
    reconfiguration_s,
)

HORIZON_WINDOWS = 3.0  # 0.5 to 20: windows for which a new layout is expected to stay right
COST_WEIGHT = 1.0  # 0.2 to 5: how much a second of stall counts against a second of serving saved
MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together


def should_replan(obs: Observation, memo: Memo) -> bool:
    """When the plan that would be made now is estimated to earn back its change."""
    kept = keep(obs)
    if not kept or len(kept) < len(obs.plan.replicas):
        return True
    fresh = plan(obs, 0.1, Memo(memo))
    expected = loads(obs)
    saved_s = plan_serving_s(obs, kept, expected) - plan_serving_s(obs, fresh.replicas, expected)
    return saved_s * HORIZON_WINDOWS > COST_WEIGHT * reconfiguration_s(obs, fresh)


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """The layout for the present load."""
    return Plan(fill(obs, loads(obs), (), MAX_NUM_SEQS), "layout for the present load")
