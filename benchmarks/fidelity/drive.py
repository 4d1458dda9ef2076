"""Driving the twin through a measured run: one replica, first come first served."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from execution.twin import Twin
from hw_profiles.performance import PerformanceModel, ReplicaPerformance
from hw_profiles.performance.calibrate.node import Node, node_of
from hw_profiles.schema import DeviceProfile, ModelSpec
from loop.contracts import (
    Finish,
    Memo,
    Observation,
    Plan,
    ReplicaSpec,
    ReplicaView,
    Request,
    RequestRecord,
    RequestView,
)

LIMIT_S = 1e7


class UnservedError(RuntimeError):
    """A measured run that the twin could not serve; counted, never judged."""


class ArrivalOrder:
    """Routes in turn and serves in order of arrival, as an engine alone does; never replans."""

    name = "arrival-order"
    digest = "arrival-order"

    def __init__(self) -> None:
        self._turn = -1

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        """Never."""
        del obs, memo
        return False

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        """The plan that stands."""
        del budget_s, memo
        return obs.plan

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
        """The next one in turn."""
        del request, memo
        self._turn = (self._turn + 1) % len(replicas)
        return self._turn

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        """Earlier arrivals first."""
        del replica, memo
        return request.arrival_s


@dataclass(frozen=True, slots=True)
class Setup:
    """An engine as it was measured."""

    device: DeviceProfile
    model: ModelSpec
    tp: int = 1
    pp: int = 1
    dp: int = 1
    """Ranks: in lock step for a mixture of experts, else separate replicas."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192

    @property
    def lockstep(self) -> int:
        """Ranks that step together."""
        return self.dp if self.model.moe is not None else 1

    @property
    def node(self) -> Node:
        """The devices of all ranks."""
        return node_of(self.device, self.tp * self.pp * self.dp)

    def replica(self, performance: PerformanceModel) -> ReplicaPerformance:
        """Speed of one replica. Raises InfeasibleError."""
        count = self.tp * self.pp * self.lockstep
        devices = list(self.node.devices.values())[:count]
        return performance.replica(self.model, devices, self.tp, self.pp, self.node, dp=self.lockstep)


class _Ranked:
    """A performance model for the twin, which knows no lock step: its tp holds the ranks, too."""

    def __init__(self, performance: PerformanceModel, setup: Setup) -> None:
        self._performance, self._setup = performance, setup

    def replica(self, model: Any, devices: Any, tp: int, pp: int, topology: Any) -> ReplicaPerformance:
        """As the twin asks for it."""
        ranks = self._setup.lockstep
        return self._performance.replica(model, devices, tp // ranks, pp, topology, dp=ranks)


def simulate(
    performance: PerformanceModel,
    setup: Setup,
    requests: Iterable[Request],
    *,
    follow_up: Callable[[RequestRecord], Request | None] | None = None,
    seed: int = 0,
) -> list[RequestRecord]:
    """Records of all requests, in order of completion; times from the moment the replicas serve.

    `follow_up` makes the request that a finished one gives way to (a closed loop), or None. Raises PlanError
    when the model does not fit, UnservedError when the simulation got stuck.
    """
    records: list[RequestRecord] = []
    ranks, devices = setup.lockstep, list(setup.node.devices)
    width = setup.tp * setup.pp * ranks

    def sink(record: RequestRecord) -> None:
        records.append(record)
        if follow_up is not None and record.finish is Finish.OK:
            following = follow_up(record)
            if following is not None:
                twin.submit([following])

    twin = Twin(
        topology=setup.node,
        models={setup.model.name: setup.model},
        performance=_Ranked(performance, setup),
        sink=sink,
        seed=seed,
    )
    twin.use(ArrivalOrder(), Memo())
    specs = [
        ReplicaSpec(
            setup.model.name,
            tuple(devices[at : at + width]),
            setup.tp * ranks,
            setup.pp,
            max_num_seqs=setup.max_num_seqs * ranks,
            max_num_batched_tokens=setup.max_num_batched_tokens * ranks,
        )
        for at in range(0, len(devices), width)
    ]
    start_s = twin.apply(Plan(tuple(specs))).expected_s + 1.0
    twin.run_until(start_s)
    twin.submit(request._replace(arrival_s=request.arrival_s + start_s) for request in requests)
    if not twin.run_until_idle(LIMIT_S):
        raise UnservedError(f"the twin got stuck at {twin.now_s:.1f} s with {setup.model.name}")
    return records
