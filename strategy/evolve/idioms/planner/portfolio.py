"""Compare several layouts, the present one among them, and take the cheapest in serving and change together.

No single rule fits every load: few long requests want large groups, many short ones want small groups, and
sometimes the change is not worth it.
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

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 8192  # 512 to 16384: tokens of one iteration
HORIZON_WINDOWS = 3.0  # 0.5 to 20: windows for which a layout is expected to stay right
COST_WEIGHT = 1.0  # 0.2 to 5: how much a second of stall counts against a second of serving saved
STRETCH = 2.0  # 1.2 to 8: how far the assumed batches of neighbouring layouts lie apart


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """The layout with the least estimated serving time over the horizon plus stall of getting there."""
    expected, kept = loads(obs), keep(obs)
    best, best_s = Plan(kept, "keep what serves"), float("inf")
    for base in (kept, ()):
        for power in (0.0, -1.0, 1.0, -2.0):
            concurrency = STRETCH**power
            specs = fill(obs, expected, base, MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=concurrency)
            candidate = Plan(specs, f"{'fill' if base else 'anew'}, batches times {concurrency:.2g}")
            serving_s = plan_serving_s(obs, specs, expected) * HORIZON_WINDOWS
            cost_s = serving_s + COST_WEIGHT * reconfiguration_s(obs, candidate)
            if cost_s < best_s:
                best, best_s = candidate, cost_s
    return best
