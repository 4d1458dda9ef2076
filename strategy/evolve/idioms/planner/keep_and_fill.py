"""Keep what serves, fill what is free.

No replica is stopped for the sake of a better layout: a change costs only the start of new replicas.
"""

from strategy.policy_api import Memo, Observation, Plan, fill, keep, loads

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 8192  # 512 to 16384: tokens of one iteration
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """The replicas that serve, and the best ones for the present load on all devices that are free."""
    specs = fill(obs, loads(obs), keep(obs), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=CONCURRENCY)
    return Plan(specs, "keep what serves, fill what is free")
