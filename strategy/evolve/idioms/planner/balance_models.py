"""Share the devices out so that all models end together.

A window is done when its slowest model is: shares by throughput forget long answers that run on, so the model
that is estimated to end last is given more, a few times over.
"""

from strategy.policy_api import Memo, Observation, Plan, fill, keep, loads, plan_makespan_s

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one
SHARE_POWER = 0.7  # 0.1 to 1.5: how strongly shares follow the difference in ends
UNEVEN = 1.5  # 1.05 to 5: last end against the mean one from which replicas change models


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Keep and fill; when one model ends much later than the others, lay out anew with corrected shares."""
    expected = loads(obs)
    limits = (MAX_NUM_SEQS, MAX_BATCHED_TOKENS)
    best = fill(obs, expected, keep(obs), *limits, concurrency=CONCURRENCY)
    ends = [plan_makespan_s(obs, best, [load]) for load in expected]
    busy = sum(1 for end_s in ends if end_s > 0)
    if busy < 2 or max(ends) * busy <= UNEVEN * sum(ends) < float("inf"):
        return Plan(best, "all models end at about the same time")
    best_s, weights = max(ends), [1.0] * len(expected)
    for _ in range(4):
        wanted = [
            load._replace(requests=load.requests * w) for load, w in zip(expected, weights, strict=True)
        ]
        specs = fill(obs, wanted, (), *limits, concurrency=CONCURRENCY)
        ends = [plan_makespan_s(obs, specs, [load]) for load in expected]
        if max(ends) < best_s:
            best, best_s = specs, max(ends)
        mean_s = sum(ends) / busy
        if not 0.0 < mean_s < float("inf"):
            break
        weights = [
            w * max(0.1, end_s / mean_s) ** SHARE_POWER for w, end_s in zip(weights, ends, strict=True)
        ]
    return Plan(best, "shares of the models by when they end")
