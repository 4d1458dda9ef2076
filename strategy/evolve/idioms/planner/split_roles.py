"""Let some replicas only prefill when prompts are most of the work, else let all do both.

Long prompts hold up everyone who decodes on the same replica; with a side of their own they do not (Zhong et
al. 2024; Patel et al. 2024). For short prompts the split wastes capacity.
"""

from strategy.policy_api import (
    DeploymentOption,
    Load,
    Memo,
    Observation,
    Plan,
    ReplicaSpec,
    Role,
    fill,
    keep,
    loads,
    option_for,
    spec_of,
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one
PROMPT_SHARE = 0.5  # 0.1 to 0.95: share of prefill in the work from which roles are split
PREFILL_BIAS = 1.5  # 0.25 to 4: capacity of the prefill side against the decode side


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Keep what serves, fill what is free, then give roles model by model."""
    specs = fill(obs, loads(obs), keep(obs), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=CONCURRENCY)
    replicas: list[ReplicaSpec] = []
    for load in loads(obs):
        mine = [spec for spec in specs if spec.model == load.model]
        paired = [(s, o) for s, o in zip(mine, option_for(obs, mine), strict=True) if o is not None]
        split = len(paired) >= 2 and _prompt_share(paired, load) > PROMPT_SHARE
        replicas += _split(paired, load) if split else _mixed(paired)
    return Plan(tuple(replicas), "roles by the share of prompts in the work")


def _prompt_share(paired: list[tuple[ReplicaSpec, DeploymentOption]], load: Load) -> float:
    """Share of prefill in the seconds of an average request, over all replicas."""
    prefill_s = sum(_prefill_s(option, load) for _, option in paired)
    return prefill_s / (prefill_s + sum(_decode_s(option, load) for _, option in paired))


def _mixed(paired: list[tuple[ReplicaSpec, DeploymentOption]]) -> list[ReplicaSpec]:
    return [spec_of(o, s.devices, Role.MIXED, MAX_NUM_SEQS, MAX_BATCHED_TOKENS) for s, o in paired]


def _split(paired: list[tuple[ReplicaSpec, DeploymentOption]], load: Load) -> list[ReplicaSpec]:
    """Prefill for those that are comparatively better at it, until both sides keep up with each other."""
    paired = sorted(paired, key=lambda pair: _prefill_s(pair[1], load) / _decode_s(pair[1], load))
    decoding = sum(1.0 / _decode_s(option, load) for _, option in paired)
    prefilling, replicas = 0.0, []
    for number, (spec, option) in enumerate(paired):
        last = number == len(paired) - 1
        if not last and (number == 0 or prefilling < PREFILL_BIAS * decoding):
            prefilling += 1.0 / _prefill_s(option, load)
            decoding -= 1.0 / _decode_s(option, load)
            replicas.append(spec_of(option, spec.devices, Role.PREFILL, MAX_NUM_SEQS, MAX_BATCHED_TOKENS))
        else:
            replicas.append(spec_of(option, spec.devices, Role.DECODE, MAX_NUM_SEQS, MAX_BATCHED_TOKENS))
    return replicas


def _prefill_s(option: DeploymentOption, load: Load) -> float:
    return load.input_tokens * max(0.05, 1.0 - load.prefix_hit) / option.prefill_tokens_per_s


def _decode_s(option: DeploymentOption, load: Load) -> float:
    """Seconds that an answer costs in a well-filled batch."""
    context = load.input_tokens + load.output_tokens / 2
    batch = max(1.0, min(float(MAX_NUM_SEQS), option.kv_capacity_tokens / context))
    step_s = option.decode_base_s / batch + option.decode_per_seq_s + option.decode_per_kv_token_s * context
    return load.output_tokens * step_s
