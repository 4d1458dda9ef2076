"""What a replica, a plan or a change of plan is estimated to cost: the arithmetic that policies share.

All of it is steady-state arithmetic on `DeploymentOption` and `ReplicaView`, cheap and pure. It is less
exact than the performance model behind those figures, and good enough to rank choices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from loop.contracts.observation import (
    Demand,
    DeploymentOption,
    Observation,
    ReplicaView,
)
from loop.contracts.plan import Plan, ReplicaKey, ReplicaSpec
from loop.contracts.workload import ReplayMode

TYPICAL_INPUT_TOKENS = 1024.0
"""Assumed before anything was seen; the conversations of the Azure 2023 trace average about this."""
TYPICAL_OUTPUT_TOKENS = 256.0

Options = Mapping[tuple[str, str, int, int], DeploymentOption]
"""Deployment options by (model, kind, tp, pp)."""


class Load(NamedTuple):
    """What one model is expected to be asked for in the next window."""

    model: str
    requests: float
    """To serve in one window: the backlog, and online also what arrives in as long as the last window."""
    input_tokens: float
    """Mean."""
    output_tokens: float
    """Mean."""
    output_tokens_p90: float
    prefix_hit: float = 0.0
    """Share of prompt tokens that need no prefill."""
    output_tokens_max: float = 0.0
    """The longest answer seen lately; 0: none was."""


def loads(obs: Observation) -> tuple[Load, ...]:
    """The expected load of each model that has deployment options, in order of name; lengths that were not
    seen yet come from earlier windows, else they are typical ones."""
    now = {demand.model: demand for demand in obs.demand}
    models = sorted({option.model for option in obs.options})
    return tuple(_load(obs, model, now.get(model)) for model in models)


def _load(obs: Observation, model: str, demand: Demand | None) -> Load:
    requests = hit = inputs = outputs = p90 = longest = 0.0
    if demand is not None:
        batch = obs.mode is ReplayMode.BATCH
        arriving = 0.0 if batch else demand.rate_per_s * obs.window_s
        requests = demand.waiting + demand.running + arriving
        hit, inputs = demand.prefix_hit, demand.input_tokens_mean
        outputs, p90 = demand.output_tokens_mean, demand.output_tokens_p90
        longest = demand.output_tokens_max
        if batch and demand.waiting and demand.waiting_input_tokens:
            inputs = demand.waiting_input_tokens / demand.waiting
    for past in (d for window in reversed(obs.history) for d in window if d.model == model):
        if inputs > 0 and outputs > 0:
            break
        inputs = inputs or past.input_tokens_mean
        outputs, p90 = outputs or past.output_tokens_mean, p90 or past.output_tokens_p90
        longest = longest or past.output_tokens_max
    inputs, outputs = max(1.0, inputs or TYPICAL_INPUT_TOKENS), max(1.0, outputs or TYPICAL_OUTPUT_TOKENS)
    return Load(model, requests, inputs, outputs, max(outputs, p90 or 2 * outputs), hit, longest)


def options_of(obs: Observation) -> Options:
    """The deployment options of an observation by (model, kind, tp, pp)."""
    return {(o.model, o.kind, o.tp, o.pp): o for o in obs.options}


def option_for(obs: Observation, specs: Sequence[ReplicaSpec]) -> list[DeploymentOption | None]:
    """The deployment option that each replica runs; None where there is none (any more)."""
    catalogue = options_of(obs)
    kinds = {device.id: device.kind for device in obs.devices}
    return [catalogue.get((s.model, kinds.get(s.devices[0], ""), s.tp, s.pp)) for s in specs]


def batch_size(option: DeploymentOption, load: Load, max_num_seqs: float = 256) -> float:
    """How many average requests decode together: bounded by `max_num_seqs` and by KV capacity; 0 when not
    even one fits. A request holds its prompt and, averaged over its life, half of its output."""
    if option.kv_capacity_tokens < load.input_tokens + load.output_tokens:
        return 0.0
    return min(float(max_num_seqs), option.kv_capacity_tokens / (load.input_tokens + load.output_tokens / 2))


def seconds_per_request(option: DeploymentOption, load: Load, batch: float) -> float:
    """Time of the replica that one average request costs when `batch` of them run together."""
    context = load.input_tokens + load.output_tokens / 2
    prefill_s = load.input_tokens * (1.0 - load.prefix_hit) / option.prefill_tokens_per_s
    decode_s = load.output_tokens * (
        option.decode_base_s / batch + option.decode_per_seq_s + option.decode_per_kv_token_s * context
    )
    return prefill_s + decode_s


def requests_per_s(option: DeploymentOption, load: Load, max_num_seqs: float = 256) -> float:
    """Steady throughput of one replica under this load; 0 when an average request does not fit."""
    batch = batch_size(option, load, max_num_seqs)
    return 1.0 / seconds_per_request(option, load, batch) if batch > 0 else 0.0


def longest_output_tokens(load: Load, requests: float) -> float:
    """The longest of so many outputs to expect: the tail from the mean to the 90th percentile, continued as
    an exponential one (its maximum of n grows by the logarithm of n)."""
    return load.output_tokens_p90 * max(1.0, math.log10(max(requests, 1.0)))


def serving_time_s(mix: Iterable[DeploymentOption], load: Load, max_num_seqs: int = 256) -> float:
    """Time in which these replicas together serve the load's requests, all released at once and shared out so
    that they finish together; inf when they cannot. The long outputs that run on when all else is done count.
    """
    if load.requests <= 0:
        return 0.0
    able = [(option, batch) for option in mix if (batch := batch_size(option, load, max_num_seqs)) > 0]
    share = load.requests / max(1, len(able))
    curves = [
        _curve(option, load, batch, longest_output_tokens(load, min(batch, share))) for option, batch in able
    ]
    if not curves:
        return float("inf")
    low, high = 0.0, min(curve.time_s(load.requests) for curve in curves)
    for _ in range(40):  # the time at which what they can have done by then is all of it
        middle = (low + high) / 2
        if sum(curve.requests(middle) for curve in curves) < load.requests:
            low = middle
        else:
            high = middle
    return high


def shared_batch(mix: Sequence[DeploymentOption], load: Load, max_num_seqs: int = 256) -> float:
    """Requests that an average one of these replicas runs together when the load is shared among them: at
    most a full batch, less when the load is small."""
    full = [batch_size(option, load, max_num_seqs) for option in mix]
    rate = sum(requests_per_s(option, load, max_num_seqs) for option in mix)
    time_s = serving_time_s(mix, load, max_num_seqs)
    if rate <= 0 or time_s <= 0:
        return float(max_num_seqs)
    return max(1.0, min(1.0, load.requests / time_s / rate) * sum(full) / len(full))


class _Curve(NamedTuple):
    """Time of one replica for n requests: `tail_s + n * first_s`, and `more_s` for each one beyond `batch`."""

    tail_s: float
    first_s: float
    more_s: float
    batch: float

    def time_s(self, requests: float) -> float:
        return self.tail_s + requests * self.first_s + max(0.0, requests - self.batch) * self.more_s

    def requests(self, time_s: float) -> float:
        full = self.batch * self.first_s
        left = max(0.0, time_s - self.tail_s)
        return (
            left / self.first_s if left <= full else self.batch + (left - full) / (self.first_s + self.more_s)
        )


def _curve(option: DeploymentOption, load: Load, batch: float, longest_tokens: float) -> _Curve:
    """Up to a full batch only the work of each request adds up, since all share the iterations."""
    more_s = load.output_tokens * option.decode_base_s / batch
    first_s = seconds_per_request(option, load, batch) - more_s
    return _Curve(longest_tokens * option.decode_base_s, first_s, more_s, batch)


def plan_serving_s(obs: Observation, specs: Sequence[ReplicaSpec], load_of: Iterable[Load]) -> float:
    """Estimated time in which a plan serves the loads of all models: the slowest model's; inf when a model
    with requests has no replica."""
    worst = 0.0
    for load in load_of:
        mine = [spec for spec in specs if spec.model == load.model]
        mix = [option for option in option_for(obs, mine) if option is not None]
        seqs = max((spec.max_num_seqs for spec in mine), default=256)
        worst = max(worst, serving_time_s(mix, load, seqs))
    return worst


def rates(obs: Observation, specs: Sequence[ReplicaSpec], load: Load) -> list[float]:
    """Requests per second of each replica under a load, at the speed observed of its slowest device; 0 for
    replicas of other models and of unknown options."""
    speed = {device.id: device.speed for device in obs.devices}
    return [
        requests_per_s(option, load, spec.max_num_seqs) * min(speed.get(d, 0.0) for d in spec.devices)
        if option is not None and spec.model == load.model
        else 0.0
        for spec, option in zip(specs, option_for(obs, specs), strict=True)
    ]


def reconfiguration_s(obs: Observation, plan: Plan) -> float:
    """Estimated stall of changing from the plan that serves to this one: the time that each new replica's
    devices drain and load, averaged over the devices of the plan."""
    old = {spec.key for spec in obs.plan.replicas}
    new = {spec.key for spec in plan.replicas}
    reused = {d for key in old - new for d in key.devices}
    drain = _drain_s(obs.replicas) if old - new else 0.0
    stalled = total = 0.0
    for spec, option in zip(plan.replicas, option_for(obs, plan.replicas), strict=True):
        total += len(spec.devices)
        if spec.key in old:
            continue
        start_s = option.start_s if option else 60.0
        wait_s = drain if reused.intersection(spec.devices) else 0.0
        stalled += len(spec.devices) * (start_s + wait_s)
    return stalled / total if total else 0.0


def _drain_s(replicas: Sequence[ReplicaView]) -> float:
    """Mean time until the running requests of a replica are done, at its present pace."""
    busy = [r for r in replicas if r.running > 0]
    if not busy:
        return 0.0
    left = sum(r.outstanding_tokens / (r.running + r.waiting) * r.decode_step_s for r in busy)
    return left / len(busy)


def added_and_removed(old: Plan, new: Plan) -> tuple[set[ReplicaKey], set[ReplicaKey]]:
    """Replicas that a change of plan starts, and those that it stops."""
    before, after = {s.key for s in old.replicas}, {s.key for s in new.replicas}
    return after - before, before - after
