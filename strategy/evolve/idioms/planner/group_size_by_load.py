"""Larger groups when requests are few or long, more and smaller ones when they are many and short.

A large group decodes each token sooner, small groups together decode more of them: how much work there is for
each device says which counts.
"""

import math

from strategy.policy_api import (
    DeploymentOption,
    Load,
    Memo,
    Observation,
    Plan,
    fill,
    keep,
    loads,
    requests_per_s,
    usable_devices,
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
EVEN_TOKENS = 20000.0  # 1000 to 200000: tokens per device at which the pace of one token counts once
LOAD_POWER = 0.5  # 0.05 to 2: how much less it counts with each doubling of the load
REPLACE_ABOVE = 2.0  # 1.1 to 8: change of that weight from which all is laid out anew


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """A layout by throughput and pace, weighted by the tokens for each device; kept while that is about right."""
    expected = loads(obs)
    tokens = sum(load.requests * (load.input_tokens + load.output_tokens) for load in expected)
    per_device = max(1.0, tokens) / max(1, len(usable_devices(obs)))
    pace_weight = min(4.0, (EVEN_TOKENS / per_device) ** LOAD_POWER)

    def rate(option: DeploymentOption, load: Load) -> float:
        step_s = option.decode_base_s + option.decode_per_seq_s
        return requests_per_s(option, load, MAX_NUM_SEQS) / math.pow(step_s, pace_weight)

    before = memo.get("pace_weight", 0.0)
    same = before / REPLACE_ABOVE <= pace_weight <= before * REPLACE_ABOVE
    if not same:
        memo["pace_weight"] = pace_weight
    specs = fill(obs, expected, keep(obs) if same else (), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, rate=rate)
    return Plan(specs, f"pace weighs {pace_weight:.2g} at {per_device:.0f} tokens a device")
