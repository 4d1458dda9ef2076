"""Fill the cluster, but leave device kinds out that are much slower than the best.

A window is done when its last request is: one long answer on a slow device can outlast all the rest.
"""

from strategy.policy_api import (
    DeploymentOption,
    Load,
    Memo,
    Observation,
    Plan,
    fill,
    keep,
    loads,
    requests_per_s,
    usable_devices,
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 8192  # 512 to 16384: tokens of one iteration
SLOWEST_STEP = 3.0  # 1.1 to 20: times the best kind's step that a kind may need


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Keep what serves and fill what is free, with kinds whose single token does not take too long."""
    usable = {device.kind for device in usable_devices(obs)}
    steps: dict[tuple[str, str], float] = {}
    for option in obs.options:
        if option.kind in usable:
            name, step_s = (option.model, option.kind), option.decode_base_s + option.decode_per_seq_s
            steps[name] = min(step_s, steps.get(name, step_s))

    def rate(option: DeploymentOption, load: Load) -> float:
        best_s = min((s for (model, _), s in steps.items() if model == option.model), default=0.0)
        if steps.get((option.model, option.kind), best_s) > SLOWEST_STEP * best_s:
            return 0.0
        return requests_per_s(option, load, MAX_NUM_SEQS)

    specs = fill(obs, loads(obs), keep(obs), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, rate=rate)
    return Plan(specs, "without the slow kinds")
