"""Static prefill/decode split: some replicas only prefill, the others only decode.

The split equalises both sides' throughput for the first load seen, and gives prefill to those devices that
are comparatively better at it (DistServe, Zhong et al. 2024; Splitwise, Patel et al. 2024). Decode is never
disturbed by long prompts; but the split is right for one ratio of prompt to output only.
"""

from strategy.policy_api import (
    DeploymentOption,
    Load,
    Memo,
    Observation,
    Plan,
    ReplicaSpec,
    ReplicaView,
    RequestView,
    Role,
    Sequence,
    batch_size,
    differs,
    fill,
    first_come,
    first_to_finish,
    keep,
    least_cost,
    loads,
    option_for,
    prefill_times_s,
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
TAIL = 4.0  # 0 to 8: how far outputs run on beyond their prediction; more avoids slow steps
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one
PREFILL_BIAS = 2.0  # 0.25 to 4: capacity of the prefill side against the decode side; prompts come in bursts


def should_replan(obs: Observation, memo: Memo) -> bool:
    """Only when the layout has a hole: a replica was lost, or devices are free that could hold one."""
    return differs(obs.plan, _layout(obs))


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Keep what serves, fill what is free, give the new replicas their roles."""
    return _layout(obs)


def _layout(obs: Observation) -> Plan:
    kept = keep(obs)
    specs = fill(obs, loads(obs), kept, MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=CONCURRENCY)
    replicas: list[ReplicaSpec] = []
    for load in loads(obs):
        replicas += _split(obs, load, [s for s in specs if s.model == load.model], set(kept))
    return Plan(tuple(replicas), "prefill and decode apart, by ratio of their work")


def _split(
    obs: Observation, load: Load, specs: list[ReplicaSpec], kept: set[ReplicaSpec]
) -> list[ReplicaSpec]:
    """Roles for one model's replicas. Those that serve keep theirs unless one side would be empty."""
    sides = {spec.role for spec in specs if spec in kept}
    if not {Role.PREFILL, Role.DECODE} <= sides:
        kept = set()
    paired = [(s, o) for s, o in zip(specs, option_for(obs, specs), strict=True) if o is not None]
    if len(paired) < 2:
        return [_with_role(spec, Role.MIXED) for spec in specs]
    paired.sort(key=lambda pair: _prefill_rate(pair[1], load) / _decode_rate(pair[1], load), reverse=True)
    prefill = sum(_prefill_rate(o, load) for s, o in paired if s in kept and s.role is Role.PREFILL)
    decode = sum(_decode_rate(o, load) for s, o in paired if s in kept and s.role is Role.DECODE)
    result = [spec for spec, _ in paired if spec in kept]
    new = [(spec, option) for spec, option in paired if spec not in kept]
    first, last = 0, len(new) - 1
    while first <= last:  # from both ends: the side that can do less gets the next one
        if prefill < decode * PREFILL_BIAS:
            spec, option = new[first]
            first, prefill = first + 1, prefill + _prefill_rate(option, load)
            result.append(_with_role(spec, Role.PREFILL))
        else:
            spec, option = new[last]
            last, decode = last - 1, decode + _decode_rate(option, load)
            result.append(_with_role(spec, Role.DECODE))
    return result


def _with_role(spec: ReplicaSpec, role: Role) -> ReplicaSpec:
    return ReplicaSpec(
        spec.model, spec.devices, spec.tp, spec.pp, role, spec.max_num_seqs, spec.max_num_batched_tokens
    )


def _prefill_rate(option: DeploymentOption, load: Load) -> float:
    """Requests per second that the replica could prefill, doing nothing else."""
    return option.prefill_tokens_per_s / (load.input_tokens * max(0.05, 1.0 - load.prefix_hit))


def _decode_rate(option: DeploymentOption, load: Load) -> float:
    """Requests per second that the replica could decode, doing nothing else."""
    batch = max(1.0, batch_size(option, load, MAX_NUM_SEQS))
    context = load.input_tokens + load.output_tokens / 2
    step = option.decode_base_s / batch + option.decode_per_seq_s + option.decode_per_kv_token_s * context
    return 1.0 / (load.output_tokens * step)


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """Of the prefill replicas the one with the shortest prompt queue; of the decode ones the least loaded."""
    if all(r.role is Role.PREFILL for r in replicas):
        return least_cost(request, replicas, prefill_times_s(request, replicas))
    return first_to_finish(request, replicas, TAIL)


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """First come, first served within a tier."""
    return first_come(request)
