"""Questions that any policy must answer well before it is worth a simulation: what `strategy check` asks.

The world is small and invented: a node of 8 large devices, one of 8 medium and one of 4 small ones, and one
model. What is asked is whether the answers are usable, not whether they are good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from loop.contracts import (
    EMPTY_PLAN,
    REJECT,
    Demand,
    DeploymentOption,
    DeviceView,
    Memo,
    Observation,
    Plan,
    Policy,
    PolicyFault,
    ReplayMode,
    ReplicaView,
    RequestView,
    Role,
    Slo,
)

BUDGET_S = 2.0
MODEL = "demo-70b"
_WEIGHT_BYTES, _KV_BYTES = 140e9, 320e3
_NODES = (
    ("large", 8, 80e9, 3.3e12, 9e14),
    ("medium", 8, 40e9, 1.5e12, 3e14),
    ("small", 4, 48e9, 0.8e12, 3.6e14),
)
"""(kind, devices, memory bytes, memory bytes/s, FLOP/s) of one node each."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One question and what is wrong with the answer; empty: nothing is."""

    question: str
    problem: str = ""


def smoke(policy: Policy, plan_problems: Callable[[Plan, Observation], Sequence[str]]) -> Iterator[Answer]:
    """Ask a policy all questions. A question that raises is answered with the error; the rest is still asked.

    `plan_problems` says why a plan cannot be carried out.
    """
    for question, ask in _QUESTIONS.items():
        try:
            yield Answer(question, next(iter(ask(policy, plan_problems)), ""))
        except PolicyFault as error:
            yield Answer(question, str(error))
        except Exception as error:  # noqa: BLE001 - a policy is foreign code: anything may come out of it
            yield Answer(question, f"{type(error).__name__}: {error}")


PlanProblems = Callable[[Plan, Observation], Sequence[str]]


def _plans(policy: Policy, problems: PlanProblems) -> Iterator[str]:
    for mode in ReplayMode:
        for requests in (2000, 1):
            obs = observation(mode, requests)
            policy.should_replan(obs, memo := Memo())
            found = problems(policy.plan(obs, BUDGET_S, memo), obs)
            if found:
                yield f"{mode} replay of {requests} requests: {found[0]}"


def _lost_node(policy: Policy, problems: PlanProblems) -> Iterator[str]:
    obs, memo = observation(ReplayMode.BATCH), Memo()
    plan = policy.plan(obs, BUDGET_S, memo)
    devices = tuple(replace(d, available=d.node != "n1") for d in obs.devices)
    up = {d.id for d in devices if d.available}
    alive = Plan(tuple(s for s in plan.replicas if up.issuperset(s.devices)))
    after = replace(obs, tick=1, devices=devices, plan=alive, changes=("down:n1",))
    policy.should_replan(after, memo)
    yield from problems(policy.plan(after, BUDGET_S, memo), after)


def _nothing_there(policy: Policy, problems: PlanProblems) -> Iterator[str]:
    obs = observation(ReplayMode.ONLINE)
    down = replace(obs, devices=tuple(replace(d, available=False) for d in obs.devices), demand=())
    for empty in (down, replace(down, devices=(), options=())):
        policy.should_replan(empty, memo := Memo())
        yield from problems(policy.plan(empty, BUDGET_S, memo), empty)


def _repeats(policy: Policy, _: PlanProblems) -> Iterator[str]:
    obs = observation(ReplayMode.BATCH)
    if policy.plan(obs, BUDGET_S, Memo()) != policy.plan(obs, BUDGET_S, Memo()):
        yield "two plans for the same observation differ"
    jobs, replicas = [request(i) for i in range(50)], replicas_of(8)
    first, second = Memo(), Memo()
    if [policy.route(j, replicas, first) for j in jobs] != [policy.route(j, replicas, second) for j in jobs]:
        yield "two routes for the same requests differ"


def _routes(policy: Policy, _: PlanProblems) -> Iterator[str]:
    replicas, memo = list(replicas_of(8)), Memo()
    used = set()
    for i in range(200):
        job = request(i)
        index = policy.route(job, tuple(replicas), memo)
        if not 0 <= index < len(replicas):
            yield f"route returned {index!r} for {len(replicas)} replicas"
            return
        used.add(index)
        at = replicas[index]
        replicas[index] = at._replace(
            waiting=at.waiting + 1,
            waiting_tokens=at.waiting_tokens + job.input_tokens,
            outstanding_tokens=at.outstanding_tokens + job.predicted_output_tokens,
        )
    if len(used) < len(replicas) // 2:
        yield f"200 requests went to {len(used)} of {len(replicas)} idle replicas"


def _priorities(policy: Policy, _: PlanProblems) -> Iterator[str]:
    memo, at = Memo(), replicas_of(1)[0]
    refused = 0
    for i in range(200):
        value = policy.priority(request(i), at, memo)
        if value == REJECT:
            refused += 1
        elif not math.isfinite(value):
            yield f"priority returned {value}"
    if refused == 200:
        yield "every request is refused"


_QUESTIONS: dict[str, Callable[[Policy, PlanProblems], Iterator[str]]] = {
    "plans that can be carried out": _plans,
    "a plan after the loss of a node": _lost_node,
    "an empty plan when there is nothing": _nothing_there,
    "the same answer when asked again": _repeats,
    "valid routes that spread the load": _routes,
    "priorities that admit requests": _priorities,
}


def observation(mode: ReplayMode, requests: int = 2000) -> Observation:
    """The invented cluster with nothing deployed, and its first demand."""
    devices = tuple(
        DeviceView(f"n{n}/{i}", kind, f"n{n}", True, 1.0, None, int(memory), 2.0, False)
        for n, (kind, count, memory, _, _) in enumerate(_NODES)
        for i in range(count)
    )
    demand = Demand(
        model=MODEL,
        arrived=requests,
        finished=requests,
        rejected=0,
        rate_per_s=requests / 300,
        input_tokens_mean=1000,
        input_tokens_p90=2500,
        output_tokens_mean=200,
        output_tokens_p90=450,
        waiting=requests,
        waiting_input_tokens=1000 * requests,
        running=0,
        ttft_p50_s=0.5,
        ttft_p99_s=4.0,
        tpot_p50_s=0.03,
        tpot_p99_s=0.1,
        goodput=1.0,
        prefix_hit=0.0,
    )
    return Observation(
        tick=0,
        now_s=0.0,
        window_s=300.0,
        mode=mode,
        devices=devices,
        options=tuple(_options()),
        plan=EMPTY_PLAN,
        replicas=(),
        demand=(demand,),
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


def _options() -> Iterator[DeploymentOption]:
    """A roofline for every group within a node that holds the weights."""
    for kind, count, memory, bytes_per_s, flops in _NODES:
        for tp in (1, 2, 4, 8):
            room = 0.9 * memory * tp - _WEIGHT_BYTES
            if tp > count or room < 0:
                continue
            scale = tp * 0.95 ** (tp - 1)
            yield DeploymentOption(
                model=MODEL,
                kind=kind,
                tp=tp,
                pp=1,
                kv_capacity_tokens=int(room / _KV_BYTES),
                start_s=40.0,
                prefill_tokens_per_s=0.5 * flops * scale / _WEIGHT_BYTES,
                decode_base_s=_WEIGHT_BYTES / (bytes_per_s * scale),
                decode_per_seq_s=2 * _WEIGHT_BYTES / (flops * scale),
                decode_per_kv_token_s=_KV_BYTES / (bytes_per_s * scale),
                tp_link_bytes_per_s=1e11,
                watts=500.0 * tp,
                usd_per_hour=2.0 * tp,
            )


def replicas_of(count: int) -> tuple[ReplicaView, ...]:
    """Idle replicas, every other one half as fast."""
    return tuple(
        ReplicaView(
            id=i,
            model=MODEL,
            role=Role.MIXED,
            kind="medium" if i % 2 else "large",
            node=f"n{i % 2}",
            tp=4,
            pp=1,
            ready_in_s=0.0,
            running=0,
            waiting=0,
            waiting_tokens=0,
            kv_tokens=0,
            kv_capacity_tokens=200_000,
            outstanding_tokens=0.0,
            max_num_seqs=256,
            max_num_batched_tokens=8192,
            prefill_tokens_per_s=10_000.0 / (1 + i % 2),
            decode_step_s=0.02 * (1 + i % 2),
            decode_tokens_per_s=3_000.0 / (1 + i % 2),
            speed=1.0,
        )
        for i in range(count)
    )


def request(i: int) -> RequestView:
    """One of a stream of requests of varied length."""
    return RequestView(i, MODEL, 0.1 * i, 0.1 * i, 200 + 97 * i % 3000, 50.0 + 31 * i % 500, 0, 0)
