"""Series of engines, replicas and policy, under the names that dashboards of the ecosystem know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from execution.replicas.desk import PolicyDesk
from execution.replicas.manager import ReplicaManager
from execution.replicas.replica import Replica
from loop.contracts import Backlog, Metric, ReplicaStage

Labels = tuple[tuple[str, str], ...]


class Counted(Protocol):
    """What the dispatcher has counted."""

    outcomes: dict[tuple[str, str], int]
    retries: int

    @property
    def moves(self) -> int:
        """Requests sent anew from a queue."""

    def backlog(self) -> tuple[Backlog, ...]:
        """Per model."""


def series(dispatcher: Counted, manager: ReplicaManager, desk: PolicyDesk) -> Iterator[Metric]:
    """All of them, those of one name together (as the text format wants them)."""
    replicas = [r for r in manager.present() if r.info is not None]
    yield from _engines(replicas)
    yield from _requests(dispatcher)
    yield from _replicas(manager)
    yield from _policy(desk)


def _engines(replicas: list[Replica]) -> Iterator[Metric]:
    """Under the names of vLLM; `engine` is the replica's id."""
    for name, kind, text, value in (
        ("vllm:num_requests_running", "gauge", "Requests in the batch.", lambda r: r.stats.running),
        ("vllm:num_requests_waiting", "gauge", "Requests in the queue.", lambda r: r.stats.waiting),
        ("vllm:kv_cache_usage_perc", "gauge", "Share of the KV cache in use (1 is all).", _kv_share),
        ("vllm:num_preemptions_total", "counter", "Requests put back into the queue.", lambda r: r.stats.preemptions),
        ("vllm:prompt_tokens_total", "counter", "Prompt tokens processed.", lambda r: r.stats.prompt_tokens),
        ("vllm:generation_tokens_total", "counter", "Tokens generated.", lambda r: r.stats.generated_tokens),
        ("vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the cache.", lambda r: r.stats.cached_tokens),
        ("autopoiesis_engine_steps_total", "counter", "Engine steps.", lambda r: r.stats.steps),
        ("autopoiesis_engine_step_seconds_total", "counter", "Time in engine steps.", lambda r: r.stats.step_s),
        ("autopoiesis_replica_in_flight", "gauge", "Requests sent to it and not done.", lambda r: r.load.in_flight),
        ("autopoiesis_replica_speed", "gauge", "Observed speed against nominal.", lambda r: r.rates.speed),
    ):  # fmt: skip
        for replica in replicas:
            labels = (("model_name", replica.spec.model), ("engine", str(replica.id)))
            yield Metric(name, kind, text, float(value(replica)), labels)


def _requests(dispatcher: Counted) -> Iterator[Metric]:
    for (model, outcome), count in sorted(dispatcher.outcomes.items()):
        yield Metric(
            "autopoiesis_requests_total",
            "counter",
            "Requests by how they ended.",
            float(count),
            (("model_name", model), ("outcome", outcome)),
        )
    backlog = dispatcher.backlog()
    for name, text, field in (
        ("autopoiesis_requests_waiting", "Accepted and not running.", "waiting"),
        ("autopoiesis_requests_running", "Running on some replica.", "running"),
    ):
        for entry in backlog:
            yield Metric(name, "gauge", text, float(getattr(entry, field)), (("model_name", entry.model),))
    yield Metric(
        "autopoiesis_request_retries_total",
        "counter",
        "Requests that lost a replica.",
        float(dispatcher.retries),
    )
    yield Metric(
        "autopoiesis_request_moves_total",
        "counter",
        "Queued requests sent anew since a replica became ready.",
        float(dispatcher.moves),
    )


def _replicas(manager: ReplicaManager) -> Iterator[Metric]:
    present = manager.present()
    for model in manager.models:
        for stage in (ReplicaStage.STARTING, ReplicaStage.READY, ReplicaStage.DRAINING):
            count = sum(r.spec.model == model and r.stage is stage for r in present)
            labels = (("model_name", model), ("stage", stage.value))
            yield Metric("autopoiesis_replicas", "gauge", "Replicas by stage.", float(count), labels)
    used = manager.resources()
    for name, text, value in (
        ("autopoiesis_replica_deaths_total", "Replicas that died or did not start.", manager.deaths),
        ("autopoiesis_replica_restarts_total", "Restarts of replicas.", manager.restarts),
        ("autopoiesis_device_seconds_total", "Device-seconds held by replicas.", used.device_s),
        ("autopoiesis_usd_total", "Price of the devices held.", used.usd),
    ):
        yield Metric(name, "counter", text, float(value))


def _policy(desk: PolicyDesk) -> Iterator[Metric]:
    faults, pauses = desk.faults, desk.swap_pauses_s
    labels: Labels = (("name", desk.policy.name), ("digest", desk.policy.digest))
    yield Metric("autopoiesis_policy_info", "gauge", "The policy that decides now.", 1.0, labels)
    yield Metric("autopoiesis_policy_swaps_total", "counter", "Swaps of the policy.", float(desk.swaps))
    yield Metric("autopoiesis_policy_decisions_total", "counter", "Requests decided.", float(desk.decisions))
    yield Metric(
        "autopoiesis_policy_decision_seconds_total", "counter", "Time in decisions.", desk.decision_s
    )
    for kind, count in (
        ("error", faults.errors),
        ("timeout", faults.timeouts),
        ("infeasible", faults.infeasible),
    ):
        yield Metric(
            "autopoiesis_policy_faults_total",
            "counter",
            "Decisions that the policy did not give.",
            float(count),
            (("kind", kind),),
        )
    yield Metric(
        "autopoiesis_policy_swap_pause_seconds",
        "gauge",
        "The latest swap, with the first decision after it.",
        pauses[-1] if pauses else 0.0,
    )


def _kv_share(replica: Replica) -> float:
    capacity = replica.kv_capacity_tokens
    return min(1.0, replica.stats.kv_tokens / capacity) if capacity else 0.0
