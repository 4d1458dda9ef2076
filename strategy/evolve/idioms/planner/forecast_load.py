"""Lay out for the load that the trend of the windows so far leads to.

Weights take a good part of a window to load: a layout for the last window is late for one that is growing
(Holt 1957).
"""

from strategy.policy_api import Memo, Observation, Plan, expected_loads, fill, keep

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one
LEVEL_WEIGHT = 0.5  # 0.1 to 0.95: share of the newest window in the level
TREND_WEIGHT = 0.3  # 0.02 to 0.9: share of the newest change in the trend


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Keep what serves, and fill what is free for the load that is forecast."""
    forecast = expected_loads(obs, LEVEL_WEIGHT, TREND_WEIGHT)
    specs = fill(obs, forecast, keep(obs), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=CONCURRENCY)
    return Plan(specs, "layout for the forecast load")
