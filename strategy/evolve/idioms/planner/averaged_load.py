"""Lay out for an average of the recent windows instead of the last one.

The last window alone is noisy; a layout made for it is wrong half of the time when bursts come and go.
"""

from strategy.policy_api import Load, Memo, Observation, Plan, fill, keep, loads

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 8192  # 512 to 16384: tokens of one iteration
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one
PAST_WEIGHT = 0.5  # 0.05 to 0.95: share that the past keeps in the average with each newer window


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Keep what serves, and fill what is free for the averaged load."""
    average = tuple(_averaged(obs, load) for load in loads(obs))
    specs = fill(obs, average, keep(obs), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=CONCURRENCY)
    return Plan(specs, "layout for the averaged load")


def _averaged(obs: Observation, load: Load) -> Load:
    """A load whose lengths and number are averaged exponentially over the history."""
    requests = inputs = outputs = 0.0
    for window in obs.history:
        for past in window:
            if past.model == load.model and past.arrived > 0:
                first = inputs == 0.0
                keep_share = 0.0 if first else PAST_WEIGHT
                requests = keep_share * requests + (1.0 - keep_share) * past.arrived
                inputs = keep_share * inputs + (1.0 - keep_share) * past.input_tokens_mean
                outputs = keep_share * outputs + (1.0 - keep_share) * past.output_tokens_mean
    if inputs <= 0.0 or outputs <= 0.0:
        return load
    return load._replace(
        requests=PAST_WEIGHT * requests + (1.0 - PAST_WEIGHT) * load.requests,
        input_tokens=PAST_WEIGHT * inputs + (1.0 - PAST_WEIGHT) * load.input_tokens,
        output_tokens=PAST_WEIGHT * outputs + (1.0 - PAST_WEIGHT) * load.output_tokens,
    )
