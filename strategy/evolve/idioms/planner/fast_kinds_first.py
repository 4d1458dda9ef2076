"""Use the fast kinds of devices first, and as many of the slower ones as the load still gains from.

For a small load the fastest devices alone are done before a slow one has ended its first long answer; the
larger the load, the more kinds are worth having.
"""

from strategy.policy_api import (
    DeploymentOption,
    Load,
    Memo,
    Observation,
    Plan,
    fill,
    loads,
    plan_makespan_s,
    reconfiguration_s,
    requests_per_s,
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
HORIZON_WINDOWS = 3.0  # 0.5 to 20: windows for which a layout is expected to stay right
COST_WEIGHT = 1.0  # 0.2 to 5: how much a second of stall counts against a second of serving saved
BATCH_SHARE = 0.5  # 0.05 to 1: share of a full batch that the layout assumes


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Layouts of the one, two, three... fastest kinds; the best in serving and change together."""
    expected = loads(obs)
    best_step: dict[str, float] = {}
    for option in obs.options:
        best_step[option.kind] = min(option.decode_base_s, best_step.get(option.kind, option.decode_base_s))
    ranked = sorted(best_step, key=lambda kind: (best_step[kind], kind))

    def rate(option: DeploymentOption, load: Load) -> float:
        return requests_per_s(option, load, BATCH_SHARE * MAX_NUM_SEQS) if option.kind in allowed else 0.0

    best, best_s = Plan(()), float("inf")
    for count in range(1, len(ranked) + 1):
        allowed = set(ranked[:count])
        specs = fill(obs, expected, (), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, rate=rate)
        candidate = Plan(specs, f"the {count} fastest kinds of devices")
        cost_s = HORIZON_WINDOWS * plan_makespan_s(obs, specs, expected)
        cost_s += COST_WEIGHT * reconfiguration_s(obs, candidate)
        if cost_s < best_s:
            best, best_s = candidate, cost_s
    return best if best.replicas else Plan(fill(obs, expected), "all kinds")
