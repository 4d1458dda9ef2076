"""Lay the whole cluster out anew for the present load.

After a shift of the mix, replicas that were right before hold devices that could do more for what is asked
now.
"""

from strategy.policy_api import Memo, Observation, Plan, fill, loads

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 8192  # 512 to 16384: tokens of one iteration
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """The best layout for the present load, whatever serves now."""
    specs = fill(obs, loads(obs), (), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=CONCURRENCY)
    return Plan(specs, "layout for the present load")
