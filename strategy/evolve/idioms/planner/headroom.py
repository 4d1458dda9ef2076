"""As many replicas as the load needs with some room to spare, the most efficient ones.

Devices that idle cost money and energy: online, a small load is served as well by a part of the cluster. In
batch replay every device shortens the window, so all are used.
"""

from strategy.policy_api import Memo, Observation, Plan, ReplayMode, expected_loads, fill, keep, shrink

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one
TARGET_USE = 0.6  # 0.2 to 0.95: share of the window in which the forecast load shall be served
GIVE_BACK_USE = 0.4  # 0.1 to 0.9: the same for the replicas that are kept when there are too many


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """What the forecast load needs: replicas beyond that go, missing ones come."""
    forecast, kept = expected_loads(obs), keep(obs)
    limits = (MAX_NUM_SEQS, MAX_BATCHED_TOKENS)
    if obs.mode is ReplayMode.BATCH:
        return Plan(fill(obs, forecast, kept, *limits, concurrency=CONCURRENCY), "batch: every device")
    if kept:
        kept = shrink(obs, forecast, kept, min(GIVE_BACK_USE, TARGET_USE) * obs.window_s)
    until_s = TARGET_USE * obs.window_s
    specs = fill(obs, forecast, kept, *limits, concurrency=CONCURRENCY, until_s=until_s)
    return Plan(specs, "what the forecast load needs")
