"""Replan when the forecast of the work has left the range that the layout was made for.

A trend says early where the load is going, so that the layout is there before the peak (Holt 1957).
"""

from strategy.policy_api import Memo, Observation, holt, keep, loads, past_values

LEVEL_WEIGHT = 0.5  # 0.1 to 0.95: share of the newest window in the level
TREND_WEIGHT = 0.3  # 0.02 to 0.9: share of the newest change in the trend
DRIFT = 1.5  # 1.05 to 4: factor by which the forecast may change before the layout is reconsidered


def should_replan(obs: Observation, memo: Memo) -> bool:
    """When a model's forecast tokens differ by the factor from those planned for, or the cluster changed."""
    kept = keep(obs)
    moved = not kept or len(kept) < len(obs.plan.replicas) or bool(obs.changes)
    forecast = {}
    for load in loads(obs):
        length = load.input_tokens + load.output_tokens
        arriving = holt(past_values(obs, load.model, "arrived"), LEVEL_WEIGHT, TREND_WEIGHT)
        forecast["work:" + load.model] = max(arriving, load.requests) * length
    for name, tokens in forecast.items():
        before = memo.get(name, 0.0)
        moved = moved or not before / DRIFT <= tokens <= before * DRIFT
    if moved:
        for name, tokens in forecast.items():
            memo[name] = tokens
    return moved
