"""Observations, replicas and requests made by hand: plausible figures, no performance model behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import NamedTuple

from loop.contracts import (
    EMPTY_PLAN,
    Demand,
    DeploymentOption,
    DeviceView,
    Observation,
    Plan,
    ReplayMode,
    ReplicaSpec,
    ReplicaView,
    RequestView,
    Role,
    Slo,
)
from strategy.policy import ModulePolicy


def policy_of(name: str, source: str) -> ModulePolicy:
    """A policy made of source text: tests trust what they wrote themselves."""
    module = ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)  # noqa: S102
    return ModulePolicy(name, module, source)


class Kind(NamedTuple):
    """An invented device kind."""

    memory_bytes: int
    bytes_per_s: float
    flops: float


KINDS: Mapping[str, Kind] = {
    "big": Kind(80 << 30, 3.0e12, 6.0e14),
    "mid": Kind(40 << 30, 1.5e12, 2.5e14),
    "small": Kind(24 << 30, 0.3e12, 0.6e14),
}
MODELS: Mapping[str, tuple[float, int]] = {"large": (140e9, 320_000), "tiny": (16e9, 128_000)}
"""Weight bytes and KV bytes per token."""


def option(model: str, kind: str, tp: int, pp: int = 1) -> DeploymentOption | None:
    """What a roofline would say of a replica; None when the weights do not fit."""
    weights, kv = MODELS[model]
    device, n = KINDS[kind], tp * pp
    room = 0.9 * device.memory_bytes * n - weights
    if room < 4096 * kv:
        return None
    scale = n * 0.95 ** (tp - 1) * 0.9 ** (pp - 1)
    return DeploymentOption(
        model=model,
        kind=kind,
        tp=tp,
        pp=pp,
        kv_capacity_tokens=int(room / kv),
        start_s=20.0 + weights / n / 2e9,
        prefill_tokens_per_s=0.5 * device.flops * scale / weights,
        decode_base_s=weights / (device.bytes_per_s * scale) + 0.002,
        decode_per_seq_s=weights / (0.5 * device.flops * scale),
        decode_per_kv_token_s=kv / (device.bytes_per_s * scale),
        tp_link_bytes_per_s=1e11,
        watts=400.0 * n,
        usd_per_hour=2.0 * n,
    )


def options(models: Sequence[str], kinds: Sequence[str]) -> tuple[DeploymentOption, ...]:
    """All options with tp in 1, 2, 4, 8 and pp in 1, 2."""
    found = (
        option(model, kind, tp, pp)
        for model in models
        for kind in kinds
        for tp in (1, 2, 4, 8)
        for pp in (1, 2)
    )
    return tuple(o for o in found if o is not None)


def devices(nodes: Sequence[tuple[str, int]]) -> tuple[DeviceView, ...]:
    """One node of (kind, count) each: n00/0, n00/1, ..."""
    return tuple(
        DeviceView(f"n{n:02}/{i}", kind, f"n{n:02}", True, 1.0, None, _memory(kind), 2.0, False)
        for n, (kind, count) in enumerate(nodes)
        for i in range(count)
    )


def _memory(kind: str) -> int:
    return KINDS[kind].memory_bytes if kind in KINDS else 8 << 30


def demand(model: str, **fields: float) -> Demand:
    """A quiet window, but for the fields given."""
    values: dict[str, float] = {
        "arrived": 0,
        "finished": 0,
        "rejected": 0,
        "rate_per_s": 0.0,
        "input_tokens_mean": 0.0,
        "input_tokens_p90": 0.0,
        "output_tokens_mean": 0.0,
        "output_tokens_p90": 0.0,
        "waiting": 0,
        "waiting_input_tokens": 0,
        "running": 0,
        "ttft_p50_s": 0.0,
        "ttft_p99_s": 0.0,
        "tpot_p50_s": 0.0,
        "tpot_p99_s": 0.0,
        "goodput": 1.0,
        "prefix_hit": 0.0,
    }
    unknown = set(fields) - set(values)
    assert not unknown, unknown
    return Demand(model=model, **{**values, **fields})  # type: ignore[arg-type]


def busy(model: str, requests: int = 2000, inputs: float = 1000.0, outputs: float = 200.0) -> Demand:
    """A window's worth of requests, released."""
    return demand(
        model,
        arrived=requests,
        finished=requests,
        rate_per_s=requests / 300.0,
        input_tokens_mean=inputs,
        input_tokens_p90=2 * inputs,
        output_tokens_mean=outputs,
        output_tokens_p90=2 * outputs,
        waiting=requests,
        waiting_input_tokens=int(requests * inputs),
    )


def observation(
    nodes: Sequence[tuple[str, int]] = (("big", 8), ("mid", 8), ("small", 4)),
    models: Sequence[str] = ("tiny",),
    demands: Sequence[Demand] | None = None,
    mode: ReplayMode = ReplayMode.BATCH,
    plan: Plan = EMPTY_PLAN,
) -> Observation:
    """A cluster and its demand at a monitoring point; nothing serves yet unless a plan is given."""
    kinds = sorted({kind for kind, _ in nodes} & set(KINDS))
    obs = Observation(
        tick=0,
        now_s=0.0,
        window_s=300.0,
        mode=mode,
        devices=devices(nodes),
        options=options(models, kinds),
        plan=EMPTY_PLAN,
        replicas=(),
        demand=tuple(busy(m) for m in models) if demands is None else tuple(demands),
        history=(),
        slo=Slo(),
        pain=0.0,
        pleasure=0.0,
        signals=(),
        changes=(),
        last_serving_s=0.0,
        last_reconfiguration_s=0.0,
        ticks_since_replan=0,
    )
    return serving(obs, plan) if plan.replicas else obs


def serving(obs: Observation, plan: Plan, ready_in_s: float = 0.0) -> Observation:
    """The next tick, with this plan in place."""
    views = tuple(view_of(obs, spec, index, ready_in_s) for index, spec in enumerate(plan.replicas))
    return replace(obs, tick=obs.tick + 1, plan=plan, replicas=views)


def view_of(obs: Observation, spec: ReplicaSpec, index: int, ready_in_s: float = 0.0) -> ReplicaView:
    """An idle replica of this spec."""
    at = {d.id: d for d in obs.devices}
    first = at[spec.devices[0]]
    o = next(
        o for o in obs.options if (o.model, o.kind, o.tp, o.pp) == (spec.model, first.kind, spec.tp, spec.pp)
    )
    kv = o.kv_capacity_tokens
    n = min(spec.max_num_seqs, max(1, kv // 1100))
    step = o.decode_base_s + n * o.decode_per_seq_s + n * 1100 * o.decode_per_kv_token_s
    return replica(
        index,
        model=spec.model,
        role=spec.role,
        kind=first.kind,
        node=first.node,
        tp=spec.tp,
        pp=spec.pp,
        ready_in_s=ready_in_s,
        kv_capacity_tokens=kv,
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        prefill_tokens_per_s=o.prefill_tokens_per_s,
        decode_step_s=o.decode_base_s,
        decode_tokens_per_s=n / step,
    )


def replica(index: int = 0, **fields: object) -> ReplicaView:
    """An idle replica, but for the fields given."""
    base = ReplicaView(
        id=index,
        model="tiny",
        role=Role.MIXED,
        kind="big",
        node="n00",
        tp=1,
        pp=1,
        ready_in_s=0.0,
        running=0,
        waiting=0,
        waiting_tokens=0,
        kv_tokens=0,
        kv_capacity_tokens=100_000,
        outstanding_tokens=0.0,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        prefill_tokens_per_s=20_000.0,
        decode_step_s=0.02,
        decode_tokens_per_s=2_000.0,
        speed=1.0,
    )
    return base._replace(**fields)  # type: ignore[arg-type]


def request(index: int = 0, **fields: object) -> RequestView:
    """An average request, but for the fields given."""
    base = RequestView(
        id=index,
        model="tiny",
        arrival_s=0.0,
        now_s=0.0,
        input_tokens=1000,
        predicted_output_tokens=200.0,
        tier=0,
        retries=0,
    )
    return base._replace(**fields)  # type: ignore[arg-type]


def loaded(view: ReplicaView, job: RequestView) -> ReplicaView:
    """The replica with one more request in its queue."""
    return view._replace(
        waiting=view.waiting + 1,
        waiting_tokens=view.waiting_tokens + job.input_tokens,
        outstanding_tokens=view.outstanding_tokens + job.predicted_output_tokens,
    )
