"""Compare many layouts by when their last request ends, and take the best in serving and change together.

Which group sizes and which kinds of devices pay depends on how many requests there are and how long they
are: few or long ones want large groups on fast devices only, many short ones want everything.
"""

import math

from strategy.policy_api import (
    DeploymentOption,
    Load,
    Memo,
    Observation,
    Plan,
    fill,
    keep,
    loads,
    plan_makespan_s,
    reconfiguration_s,
    requests_per_s,
    usable_devices,
)

MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
MAX_BATCHED_TOKENS = 2048  # 512 to 16384: tokens of one iteration
HORIZON_WINDOWS = 3.0  # 0.5 to 20: windows for which a layout is expected to stay right
COST_WEIGHT = 1.0  # 0.2 to 5: how much a second of stall counts against a second of serving saved
SLOWEST_STEP = 3.0  # 1.1 to 20: times the best kind's step that a kind may need


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    """The layout of the least estimated makespan over the horizon, the stall of getting there included."""
    expected, kept = loads(obs), keep(obs)
    layouts = [Plan(fill(obs, expected, kept, MAX_NUM_SEQS, MAX_BATCHED_TOKENS), "keep what serves")]
    for pace_weight in (0.0, 0.5, 1.0, 2.0):
        for slowest in (1e9, SLOWEST_STEP):
            layouts.append(_layout(obs, expected, pace_weight, slowest))
    for concurrency in (0.3, 1.0, 2.5):
        specs = fill(obs, expected, (), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, concurrency=concurrency)
        layouts.append(Plan(specs, f"batches times {concurrency:g}"))
    return min(layouts, key=lambda layout: _cost_s(obs, layout))


def _layout(obs: Observation, expected: tuple[Load, ...], pace_weight: float, slowest: float) -> Plan:
    """All anew, by throughput and by the pace of one token; kinds with steps that are too slow left out."""
    fastest = _kind_steps_s(obs)

    def rate(option: DeploymentOption, load: Load) -> float:
        best_s = min((s for (model, _), s in fastest.items() if model == option.model), default=0.0)
        if fastest.get((option.model, option.kind), math.inf) > slowest * best_s:
            return 0.0
        return requests_per_s(option, load, MAX_NUM_SEQS) / math.pow(_step_s(option), pace_weight)

    specs = fill(obs, expected, (), MAX_NUM_SEQS, MAX_BATCHED_TOKENS, rate=rate)
    return Plan(specs, f"pace weighs {pace_weight:g}, steps up to {slowest:g} times the fastest")


def _kind_steps_s(obs: Observation) -> dict[tuple[str, str], float]:
    """The best step that each usable kind of device can have, by (model, kind)."""
    usable = {device.kind for device in usable_devices(obs)}
    steps: dict[tuple[str, str], float] = {}
    for option in obs.options:
        if option.kind in usable:
            name = (option.model, option.kind)
            steps[name] = min(_step_s(option), steps.get(name, math.inf))
    return steps


def _step_s(option: DeploymentOption) -> float:
    return option.decode_base_s + option.decode_per_seq_s


def _cost_s(obs: Observation, layout: Plan) -> float:
    """Serving time over the horizon, and the stall of getting there."""
    serving_s = plan_makespan_s(obs, layout.replicas, loads(obs))
    return HORIZON_WINDOWS * serving_s + COST_WEIGHT * reconfiguration_s(obs, layout)
