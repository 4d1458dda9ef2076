"""Best static layout; each request joins the replica that is estimated to finish it first.

The layout fills every usable device with the parallelism that gives the most requests per second for the
first load seen, and changes only when devices are lost or come back. Routing compares seconds of work, not
numbers of requests, so that a slow device of a mixed cluster gets as much as it can do and no more.
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
    first_come,
    first_to_finish,
    keep,
    loads,
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration, the chunk of chunked prefill
TAIL = 4.0  # 0 to 8: how far outputs run on beyond their prediction; more avoids slow steps
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one


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
    """The replica with the least estimated backlog, in seconds."""
    return first_to_finish(request, replicas, TAIL)


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """First come, first served within a tier."""
    return first_come(request)
