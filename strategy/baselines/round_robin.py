"""Best static layout; the replicas of a model take turns, in proportion to their nominal throughput.

What a plain load balancer does, weighted so that slow devices of a mixed cluster do not hold up the rest.
It looks at no queue: neither long requests nor stragglers change whose turn it is.
"""

from strategy.policy_api import (
    Memo,
    Observation,
    Plan,
    ReplicaView,
    RequestView,
    Sequence,
    count_up,
    differs,
    fill,
    first_come,
    keep,
    loads,
    throughput_weights,
    weighted_turn,
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one
START_WAIT_S = 60.0  # 0 to 600: a replica that starts so much later than the soonest gets no turns yet


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
    """The next one: turns are dealt in proportion to how fast a replica would do this request's work."""
    weights = throughput_weights(request, replicas, START_WAIT_S)
    return weighted_turn(weights, count_up(memo, "turn:" + request.model))


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """First come, first served within a tier."""
    return first_come(request)
