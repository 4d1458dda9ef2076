"""Reschedules every few windows; routes by freeness: what ends soon and has room left for its KV.

After Llumnix (Sun et al. 2024): a replica's virtual usage is the KV cache that its running requests hold
plus what its queue will need. Every few windows the layout is reconsidered, and changed when that pays;
requests that have not started are dealt out anew (the data plane routes them again at each applied plan),
which is how this one migrates.
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
    plan_serving_s,
    reconfiguration_s,
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
TAIL = 4.0  # 0 to 8: how far outputs run on beyond their prediction; more avoids slow steps
CONCURRENCY = 1.0  # 0.1 to 4: batch that the layout assumes, against the expected one
PERIOD_WINDOWS = 3  # 1 to 16: windows between two reschedulings
MARGIN = 1.5  # 1 to 10: a new layout must save this many times what the change costs, until the next one
PRESSURE = 0.2  # 0 to 4: how much later a replica counts whose KV cache is all spoken for


def should_replan(obs: Observation, memo: Memo) -> bool:
    """Every few windows, and at once when a replica was lost or devices came free."""
    return obs.ticks_since_replan >= PERIOD_WINDOWS or differs(obs.plan, _filled(obs))


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """The layout for the present load when it pays for the change, else what serves, with holes filled."""
    expected = loads(obs)
    filled = _filled(obs)
    fresh = Plan(
        fill(obs, expected, (), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=CONCURRENCY),
        "layout for the present load",
    )
    saved_s = plan_serving_s(obs, filled.replicas, expected) - plan_serving_s(obs, fresh.replicas, expected)
    cost_s = reconfiguration_s(obs, fresh) - reconfiguration_s(obs, filled)
    return fresh if saved_s * PERIOD_WINDOWS > MARGIN * max(cost_s, 0.0) else filled


def _filled(obs: Observation) -> Plan:
    specs = fill(obs, loads(obs), keep(obs), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=CONCURRENCY)
    return Plan(specs, "keep what serves, deal waiting requests out anew")


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """The soonest end, put off by virtual usage: a replica whose KV is spoken for counts as later."""
    need = request.input_tokens + request.predicted_output_tokens
    costs = []
    for r, finish_s in zip(replicas, finish_times_s(request, replicas, TAIL), strict=True):
        virtual = (r.kv_tokens + r.waiting_tokens + r.outstanding_tokens + need) / max(
            1, r.kv_capacity_tokens
        )
        costs.append(finish_s * (1.0 + PRESSURE * virtual))
    return least_cost(request, replicas, costs)


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """First come, first served within a tier."""
    return first_come(request)
