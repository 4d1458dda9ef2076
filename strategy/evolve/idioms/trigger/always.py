"""Ask the planner at every monitoring point.

Right for planners that weigh the cost of a change themselves: whoever keeps what is good enough needs no
trigger to hold it back.
"""

from strategy.policy_api import Memo, Observation


def should_replan(obs: Observation, memo: Memo) -> bool:
    """At every monitoring point; the planner decides whether anything changes."""
    return True
