"""Replan when the plan that would be made now finishes the load so much sooner that its change pays.

As gain over cost, but what a layout saves is judged by when its last request ends, unequal replicas and long
answers included; the planner of the policy itself makes the plan that is judged.
"""

from strategy.policy_api import Memo, Observation, Plan, fill, keep, loads, plan_makespan_s, reconfiguration_s

HORIZON_WINDOWS = 3.0  # 0.5 to 20: windows for which a new layout is expected to stay right
CHURN_WINDOWS = 0.75  # 0.2 to 10: the same while devices come and go: the next change is near
COST_WEIGHT = 1.0  # 0.2 to 5: how much a second of stall counts against a second of serving saved
MIN_GAIN = 0.1  # 0.001 to 0.3: share of the serving time that a change must save to be believed
MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together


def should_replan(obs: Observation, memo: Memo) -> bool:
    """When the saving over the horizon clearly exceeds the stall; at once when a replica was lost."""
    kept = keep(obs)
    if not kept or len(kept) < len(obs.plan.replicas):
        return True
    fresh = plan(obs, 0.1, Memo(memo))
    expected = loads(obs)
    now_s = plan_makespan_s(obs, kept, expected)
    saved_s = now_s - plan_makespan_s(obs, fresh.replicas, expected)
    horizon = CHURN_WINDOWS if obs.changes else HORIZON_WINDOWS
    worth_s = horizon * (saved_s - MIN_GAIN * now_s)
    return saved_s > 0 and worth_s > COST_WEIGHT * reconfiguration_s(obs, fresh)


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """The layout for the present load."""
    return Plan(fill(obs, loads(obs), (), MAX_NUM_SEQS), "layout for the present load")
