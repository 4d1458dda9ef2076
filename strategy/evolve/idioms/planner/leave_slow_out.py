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
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 8192  # 512 to 16384: tokens of one iteration
SLOWEST_STEP = 3.0  # 1.1 to 20: a kind may need so many times the best kind's time for one token alone


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """Keep what serves and fill what is free, with options whose single token does not take too long."""
    fastest: dict[str, float] = {}
    for option in obs.options:
        step_s = _step_s(option)
        fastest[option.model] = min(step_s, fastest.get(option.model, step_s))

    def rate(option: DeploymentOption, load: Load) -> float:
        if _step_s(option) > SLOWEST_STEP * fastest[option.model]:
            return 0.0
        return requests_per_s(option, load, MAX_NUM_SEQS)

    specs = fill(obs, loads(obs), keep(obs), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, rate=rate)
    return Plan(specs, "without the slow kinds")


def _step_s(option: DeploymentOption) -> float:
    return option.decode_base_s + option.decode_per_seq_s
