"""Use devices that are about to be reclaimed as long as they stay long enough to earn their start.

Who leaves such a device at once gives its remaining minutes away; who starts a replica there too late loads
weights for nothing, and its requests are computed twice.
"""

from strategy.policy_api import Memo, Observation, Plan, fill, keep, loads

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one
STAY_S = 60.0  # 5 to 600: a replica serves on where its devices stay at least so long
START_STAY_S = 300.0  # 30 to 3600: a replica is started only where its devices stay at least so long


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Keep what may still serve a while, fill what stays long enough."""
    kept = keep(obs, STAY_S)
    specs = fill(
        obs,
        loads(obs),
        kept,
        MAX_NUM_SEQS,
        MAX_BATCHED_TOKENS,
        horizon_s=max(STAY_S, START_STAY_S),
        concurrency=CONCURRENCY,
    )
    return Plan(specs, "devices that leave are used while that pays")
