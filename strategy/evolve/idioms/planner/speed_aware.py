"""Leave devices that are much slower than their likes out, and replace the replicas on them.

The slowest device sets the pace of its whole group, and the slowest group that of the window: seven good
devices that wait for a throttled one are better off without it.
"""

from strategy.policy_api import Memo, Observation, Plan, fill, keep, loads, plan_makespan_s, slow_devices

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one
SLOW_SPEED = 0.7  # 0.1 to 0.98: speed against the median of its kind below which a device is slow


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Keep and fill without the slow devices, unless their work is worth more than their delay."""
    expected, kept = loads(obs), keep(obs)
    limits = (MAX_NUM_SEQS, MAX_BATCHED_TOKENS)
    everything = fill(obs, expected, kept, *limits, concurrency=CONCURRENCY)
    slow = slow_devices(obs, SLOW_SPEED)
    if not slow:
        return Plan(everything, "no device is slow")
    healthy = tuple(spec for spec in kept if slow.isdisjoint(spec.devices))
    specs = fill(obs, expected, healthy, *limits, concurrency=CONCURRENCY, leave_out=slow)
    without_s = plan_makespan_s(obs, specs, expected)
    if not specs or without_s > plan_makespan_s(obs, everything, expected):
        return Plan(everything, "slow devices still help")
    return Plan(specs, f"without {len(slow)} slow devices")
