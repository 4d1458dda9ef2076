"""Batch limits by what requests are made of: large chunks for long prompts, wide batches for long answers.

A chunk of a long prompt holds up everyone who decodes beside it; small chunks cost more iterations. Which one
is dearer follows the ratio of prompt to answer. Limits change live, without a restart.
"""

from strategy.policy_api import Memo, Observation, Plan, ReplicaSpec, fill, keep, loads

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 4096  # 512 to 16384: tokens of one iteration when prompts are as long as usual
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one
USUAL_RATIO = 8.0  # 1 to 64: prompt tokens for each answer token at which the chunk is as stated
CHUNK_POWER = 0.5  # -1 to 1: how strongly the chunk grows with that ratio


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Keep what serves, fill what is free, and set the chunk of each model's replicas by its mix."""
    expected = loads(obs)
    chunks: dict[str, int] = {}
    for load in expected:
        ratio = load.input_tokens * (1.0 - load.prefix_hit) / load.output_tokens
        wanted = MAX_BATCHED_TOKENS * (max(0.01, ratio) / USUAL_RATIO) ** CHUNK_POWER
        chunks[load.model] = 256 * max(2, min(64, round(wanted / 256)))
    specs = fill(obs, expected, keep(obs), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=CONCURRENCY)
    limited = [
        ReplicaSpec(
            s.model, s.devices, s.tp, s.pp, s.role, MAX_NUM_SEQS, chunks.get(s.model, MAX_BATCHED_TOKENS)
        )
        for s in specs
    ]
    return Plan(tuple(limited), "chunks by the ratio of prompt to answer")
