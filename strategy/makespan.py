"""When the last request of a load is done: how planners rank layouts.

`estimates.serving_time_s` lets all replicas finish together. Here requests are shared out as routers do it, who
do not know how long an answer will be, and the longest answer may fall on any replica that gets requests. So
a layout that owes its throughput to slow replicas is told from one that really is done early.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import log10
from typing import NamedTuple

from loop.contracts.observation import DeploymentOption, Observation
from loop.contracts.plan import ReplicaSpec, Role
from strategy.estimates import Load, option_for

NOMINAL_CONTEXT_TOKENS = 1024
"""Context that `ReplicaView.decode_tokens_per_s` assumes."""
_ROUNDS = 32
"""Halvings of the interval that a time is searched in: to about a billionth of it."""


class _Group(NamedTuple):
    """Replicas that are alike, and their number."""

    option: DeploymentOption
    seqs: int
    speed: float
    role: Role
    number: int

    def believed_s(self, load: Load) -> float:
        """Seconds that a router takes a request to add to the queue."""
        o = self.option
        seats = max(1.0, min(self.seqs, o.kv_capacity_tokens // NOMINAL_CONTEXT_TOKENS))
        token_s = (
            o.decode_base_s / seats + o.decode_per_seq_s + o.decode_per_kv_token_s * NOMINAL_CONTEXT_TOKENS
        )
        prefill_s = 0.0 if self.role is Role.DECODE else load.input_tokens / o.prefill_tokens_per_s
        return (prefill_s + load.output_tokens * token_s) / self.speed

    def alone_s(self, load: Load) -> float:
        """Seconds of decode of an average answer alone."""
        return load.output_tokens * (self.option.decode_base_s + self.option.decode_per_seq_s) / self.speed

    def work_s(self, load: Load, requests: float) -> float:
        """Seconds in which one of them does so many average requests, the steps of the longest left out."""
        o = self.option
        context = load.input_tokens + load.output_tokens / 2
        batch = max(1.0, min(float(self.seqs), o.kv_capacity_tokens / context))
        prefill_s = load.input_tokens * (1.0 - load.prefix_hit) / o.prefill_tokens_per_s
        if self.role is Role.DECODE:
            prefill_s = 0.0
        token_s = o.decode_per_seq_s + o.decode_per_kv_token_s * context
        rounds = max(0.0, requests / batch - 1.0)
        work_s = requests * (prefill_s + load.output_tokens * token_s)
        return (work_s + rounds * load.output_tokens * o.decode_base_s) / self.speed


def plan_makespan_s(
    obs: Observation, specs: Sequence[ReplicaSpec], load_of: Iterable[Load], tail: float = 4.0
) -> float:
    """Estimated seconds until a plan has served the loads of all models, released at once: the slowest
    model's; inf when a model with requests has no replica that can hold one.

    Requests are shared out as `first_to_finish` with this `tail` would; more than `longest_output_tokens` of
    all requests on each replica cannot be waited for. Devices count at the speed observed.
    """
    worst = 0.0
    for load in load_of:
        if load.requests > 0:
            groups = _groups(obs, [spec for spec in specs if spec.model == load.model])
            worst = max(worst, _model_makespan_s(groups, load, tail))
    return worst


def _groups(obs: Observation, specs: Sequence[ReplicaSpec]) -> list[_Group]:
    """Alike replicas together; those at standstill and of unknown options left out."""
    speeds = {device.id: device.speed for device in obs.devices}
    alike: Counter[tuple[DeploymentOption, int, float, Role]] = Counter()
    for spec, option in zip(specs, option_for(obs, specs), strict=True):
        speed = min(speeds.get(device, 0.0) for device in spec.devices)
        if option is not None and speed > 0:
            alike[option, spec.max_num_seqs, speed, spec.role] += 1
    return [_Group(*key, count) for key, count in alike.items()]


def _model_makespan_s(groups: Sequence[_Group], load: Load, tail: float) -> float:
    need = load.input_tokens + load.output_tokens
    able = [g for g in groups if g.option.kv_capacity_tokens > need]
    decoding = [g for g in able if g.role is not Role.PREFILL]
    prefilling = [g for g in able if g.role is Role.PREFILL]
    if not decoding:
        return float("inf")
    prompts_s = 0.0
    if prefilling:
        rate = sum(g.number * g.speed * g.option.prefill_tokens_per_s for g in prefilling)
        prompts_s = load.requests * load.input_tokens * (1.0 - load.prefix_hit) / rate
    elif all(g.role is Role.DECODE for g in decoding):
        return float("inf")
    return max(prompts_s, _last_s(decoding, _shares(decoding, load, tail), load))


def _shares(groups: Sequence[_Group], load: Load, tail: float) -> list[float]:
    """Requests that each replica of a group gets from a router that joins the one believed to be first."""
    each = [(g.number, g.believed_s(load), tail * g.alone_s(load)) for g in groups]
    low = min(alone for _, _, alone in each)
    high = low + load.requests * min(believed for _, believed, _ in each) + max(a for _, _, a in each)
    for _ in range(_ROUNDS):
        level = (low + high) / 2
        held = sum(n * max(0.0, level - alone) / believed for n, believed, alone in each)
        low, high = (level, high) if held < load.requests else (low, level)
    return [max(0.0, high - alone) / believed for _, believed, alone in each]


def _last_s(groups: Sequence[_Group], shares: Sequence[float], load: Load) -> float:
    """When one of all answers is expected to be still under way: a request runs on beyond x tokens with
    probability 10 ** (-x / decade), an exponential tail through the 90th percentile, or through the longest
    answer seen where that lies further out (some think for long, most do not)."""
    decade = max(load.output_tokens_p90, load.output_tokens_max / max(1.0, log10(max(1.0, load.requests))))
    busy = [
        (g.number * share, g.work_s(load, share), decade * g.option.decode_base_s / g.speed)
        for g, share in zip(groups, shares, strict=True)
        if share > 0.01
    ]
    if not busy:
        return float("inf")
    low = max(work_s for _, work_s, _ in busy)
    high = low + max(decade_s for _, _, decade_s in busy) * 10.0
    for _ in range(_ROUNDS):
        at_s = (low + high) / 2
        late = sum(n * 10.0 ** ((work_s - at_s) / decade_s) for n, work_s, decade_s in busy)
        low, high = (at_s, high) if late > 1.0 else (low, at_s)
    return high
