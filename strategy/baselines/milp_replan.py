"""Replans at every change with an exact solver; work is dealt out in proportion to throughput.

After a change of the devices, and after each window whose load moved, a mixed-integer program over all
replica layouts of the heterogeneous cluster is solved with HiGHS (in the spirit of Helix, Mei et al. 2025).
The layout is optimal for the load just seen; what the solving and the restarts cost is hardly weighed.
"""

from strategy.layout_milp import LayoutProblem, solve_layout
from strategy.policy_api import (
    Memo,
    Observation,
    Plan,
    ReplicaView,
    RequestView,
    Sequence,
    fill,
    first_come,
    first_to_finish,
    keep,
    loads,
    plan_serving_s,
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
TAIL = 4.0  # 0 to 8: how far outputs run on beyond their prediction; more avoids slow steps
MOVED = 0.1  # 0 to 1: relative change of a load's requests or lengths that counts as a change
RESTART_PENALTY = 0.02  # 0 to 0.5: share of its throughput that a replica which can stay counts for on top
SOLVE_SHARE = 0.8  # 0.1 to 0.9: share of the planning budget that the solver may use


def should_replan(obs: Observation, memo: Memo) -> bool:
    """At every change: of the devices, of the replicas, or of the load since the last plan."""
    return (
        bool(obs.changes)
        or not obs.plan.replicas
        or len(keep(obs)) < len(obs.plan.replicas)
        or memo.get("devices", 0.0) != sum(device.available for device in obs.devices)
        or _moved(obs, memo)
    )


def _moved(obs: Observation, memo: Memo) -> bool:
    for load in loads(obs):
        for name, value in zip(("requests", "inputs", "outputs"), load[1:4], strict=True):
            planned = memo.get(f"{name}:{load.model}", 0.0)
            if abs(value - planned) > MOVED * max(planned, 1.0):
                return True
    return False


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """The optimal layout for the load just seen; when the solver finds none in time, keep and fill."""
    expected = loads(obs)
    memo["devices"] = float(sum(device.available for device in obs.devices))
    for load in expected:
        for name, value in zip(("requests", "inputs", "outputs"), load[1:4], strict=True):
            memo[f"{name}:{load.model}"] = value
    problem = LayoutProblem(obs, expected, MAX_NUM_SEQS, MAX_BATCHED_TOKENS, RESTART_PENALTY)
    specs = solve_layout(problem, SOLVE_SHARE * budget_s)
    filled = fill(obs, expected, keep(obs), MAX_NUM_SEQS, MAX_BATCHED_TOKENS)
    if specs and plan_serving_s(obs, specs, expected) <= plan_serving_s(obs, filled, expected):
        return Plan(specs, "optimal layout for the load just seen (HiGHS)")
    return Plan(filled, "no better layout found in time: keep and fill")


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    """Work in proportion to throughput: the replica that is estimated to finish the request first."""
    return first_to_finish(request, replicas, TAIL)


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
    """First come, first served within a tier."""
    return first_come(request)
