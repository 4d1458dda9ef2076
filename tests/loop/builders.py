"""Small observations, plans and policies for the loop's tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from loop.contracts import (
    EMPTY_PLAN,
    Demand,
    DeploymentOption,
    DeviceView,
    Memo,
    Observation,
    Plan,
    ReplayMode,
    ReplicaSpec,
    ReplicaView,
    RequestView,
    Slo,
)
from tests.strategy.builders import replica


def device(name: str, **changes: Any) -> DeviceView:
    base = DeviceView(
        id=name,
        kind="h100-sxm",
        node=name.split("/", maxsplit=1)[0],
        available=True,
        speed=1.0,
        leaving_in_s=None,
        memory_bytes=80 * 2**30,
        usd_per_hour=4.0,
        spot=False,
    )
    return replace(base, **changes)


def option(**changes: Any) -> DeploymentOption:
    base = DeploymentOption(
        model="m",
        kind="h100-sxm",
        tp=1,
        pp=1,
        kv_capacity_tokens=100_000,
        start_s=30.0,
        prefill_tokens_per_s=20_000.0,
        decode_base_s=0.01,
        decode_per_seq_s=1e-5,
        decode_per_kv_token_s=1e-8,
        tp_link_bytes_per_s=4e11,
        watts=700.0,
        usd_per_hour=4.0,
    )
    return replace(base, **changes)


def demand(**changes: Any) -> Demand:
    base = Demand(
        model="m",
        arrived=10,
        finished=10,
        rejected=0,
        rate_per_s=1.0,
        input_tokens_mean=100.0,
        input_tokens_p90=200.0,
        output_tokens_mean=50.0,
        output_tokens_p90=80.0,
        waiting=0,
        waiting_input_tokens=0,
        running=0,
        ttft_p50_s=0.1,
        ttft_p99_s=0.5,
        tpot_p50_s=0.02,
        tpot_p99_s=0.03,
        goodput=1.0,
        prefix_hit=0.0,
    )
    return replace(base, **changes)


def observation(**changes: Any) -> Observation:
    base = Observation(
        tick=0,
        now_s=0.0,
        window_s=60.0,
        mode=ReplayMode.BATCH,
        devices=(device("n0/gpu0"), device("n0/gpu1"), device("n1/gpu0")),
        options=(option(), option(tp=2)),
        plan=EMPTY_PLAN,
        replicas=(),
        demand=(demand(),),
        history=(),
        slo=Slo(),
        pain=0.0,
        pleasure=0.0,
        signals=(("goodput", 1.0),),
        changes=(),
        last_serving_s=0.0,
        last_reconfiguration_s=0.0,
        ticks_since_replan=0,
    )
    return replace(base, **changes)


def spec(*devices: str, **changes: Any) -> ReplicaSpec:
    return replace(ReplicaSpec("m", devices, tp=len(devices)), **changes)


def replica_view(**changes: Any) -> ReplicaView:
    base = replica(model="m", kind="h100-sxm", node="n0", decode_step_s=0.01, decode_tokens_per_s=5_000.0)
    return base._replace(**changes)


def request_view(**changes: Any) -> RequestView:
    base = RequestView(
        id=1,
        model="m",
        arrival_s=0.0,
        now_s=1.0,
        input_tokens=100,
        predicted_output_tokens=50.0,
        tier=0,
        retries=0,
    )
    return base._replace(**changes)


class ScriptedPolicy:
    """A policy that gives the answers it is made with; an exception among them is raised."""

    name = "scripted"

    def __init__(self, digest: str = "scripted", **answers: Any) -> None:
        self.digest = digest
        self._answers: dict[str, Any] = {
            "should_replan": False,
            "plan": Plan((spec("n0/gpu0"),)),
            "route": 0,
            "priority": 0.0,
        } | answers

    def _answer(self, question: str) -> Any:
        answer = self._answers[question]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        memo["asked"] = memo.get("asked", 0.0) + 1.0
        return self._answer("should_replan")  # type: ignore[no-any-return]

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        return self._answer("plan")  # type: ignore[no-any-return]

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
        return self._answer("route")  # type: ignore[no-any-return]

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        return self._answer("priority")  # type: ignore[no-any-return]
