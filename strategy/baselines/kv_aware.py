"""Best static layout; replicas are scored by prefix hit, queue and KV use, with fixed weights.

How the usual inference gateways route (llm-d's and the vLLM production stack's scorers, Dynamo's KV router).
Each term is in 0 to 1; the queue is in seconds of work here, not in requests, which suits mixed clusters. The
weights are right for one load and wrong for the next: a popular prefix can pile up one queue.
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
MAX_BATCHED_TOKENS = 8192  # 512 to 16384: tokens of one iteration
TAIL = 2.0  # 0 to 8: steps that a request may run on, against its predicted output
CONCURRENCY = 1.0  # 0.1 to 4: batch assumed for the layout, against the expected; less favours larger groups
PREFIX_WEIGHT = 3.0  # 0 to 10: share of the prompt that is in the replica's prefix cache
QUEUE_WEIGHT = (
    2.0  # 0 to 10: estimated time until the request is done, between the best and the worst replica
)
KV_WEIGHT = 0.5  # 0 to 10: share of the KV cache that is free


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
    done_s = finish_times_s(request, replicas, TAIL)
    soonest = min(done_s)
    queue_scale = QUEUE_WEIGHT / ((max(done_s) - soonest) or 1.0)
    prefix_scale = PREFIX_WEIGHT / max(1, request.input_tokens)
    cached = request.cached_tokens or (0,) * len(replicas)
    costs = [
        -prefix_scale * cached[index]
        + queue_scale * (done_s[index] - soonest)
        + KV_WEIGHT * replica.kv_tokens / max(1, replica.kv_capacity_tokens)
        for index, replica in enumerate(replicas)
    ]
    return least_cost(request, replicas, costs)


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """First come, first served within a tier."""
    return first_come(request)
