"""Best static layout; replicas are scored by prefix hit, queue and KV use, with fixed weights.

How the usual inference gateways route (llm-d's and the vLLM production stack's scorers, Dynamo's KV router).
All terms are in seconds here, not in numbers of requests or blocks, which suits mixed clusters. The weights
are right for one load and wrong for the next: a popular prefix can pile up one queue.
"""

from strategy.policy_api import (
    Memo,
    Observation,
    Plan,
    ReplicaView,
    RequestView,
    Sequence,
    differs,
    fill,
    finish_times_s,
    first_come,
    keep,
    least_cost,
    loads,
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
TAIL = 4.0  # 0 to 8: how far outputs run on beyond their prediction; more avoids slow steps
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one
PREFIX_WEIGHT = 2.0  # 0 to 10: prefill time that the replica's prefix cache saves
QUEUE_WEIGHT = 1.0  # 0 to 10: estimated time until the request is done
KV_WEIGHT = 4.0  # 0 to 60: seconds that a full KV cache counts for


def should_replan(obs: Observation, memo: Memo) -> bool:
    """Only when the layout has a hole: a replica was lost, or devices are free that could hold one."""
    return differs(obs.plan, _layout(obs))


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Keep what serves, fill what is free."""
    return _layout(obs)


def _layout(obs: Observation) -> Plan:
    specs = fill(obs, loads(obs), keep(obs), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=CONCURRENCY)
    return Plan(specs, "fill every usable device, keep what serves")


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The best weighted score, as the least weighted cost."""
    tokens = request.input_tokens
    cached = request.cached_tokens or (0,) * len(replicas)
    costs = [
        QUEUE_WEIGHT * finish_s
        - PREFIX_WEIGHT * min(cached[index], tokens) / (replica.prefill_tokens_per_s or 1e-9)
        + KV_WEIGHT * replica.kv_tokens / max(1, replica.kv_capacity_tokens)
        for index, (replica, finish_s) in enumerate(
            zip(replicas, finish_times_s(request, replicas, TAIL), strict=True)
        )
    ]
    return least_cost(request, replicas, costs)


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """First come, first served within a tier."""
    return first_come(request)
