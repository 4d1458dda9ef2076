"""Replan when the mix of requests has drifted from the one that the layout was made for.

The best parallelism depends on how long prompts and answers are, and on which model they ask for: as long as
these stay, the layout stays right.
"""

from strategy.policy_api import Memo, Observation, keep, loads

DRIFT = 1.5  # 1.05 to 4: factor by which a model's load may change before the layout is reconsidered


def should_replan(obs: Observation, memo: Memo) -> bool:
    """When some model's prompt or output tokens differ by the factor, or the cluster changed."""
    kept = keep(obs)
    drifted = not kept or len(kept) < len(obs.plan.replicas) or bool(obs.changes)
    seen: dict[str, float] = {}
    for load in loads(obs):
        seen["in:" + load.model] = load.requests * load.input_tokens
        seen["out:" + load.model] = load.requests * load.output_tokens
    for name, tokens in seen.items():
        before = memo.get(name, 0.0)
        drifted = drifted or not before / DRIFT <= tokens <= before * DRIFT
    if drifted:
        for name, tokens in seen.items():
            memo[name] = tokens
    return drifted
