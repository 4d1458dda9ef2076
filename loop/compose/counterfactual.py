"""What would have been: the requests of a live run, replayed in the twin as it was calibrated to these engines.

`like_recorded` sends each request to the replica that it really went to, so that what differs is the twin's idea of
the engines alone; with a policy in its place, the twin tells what that policy would have done.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from execution.replicas.options import DispatcherOptions
from execution.twin import Twin
from hw_profiles import ModelSpec, load_cluster, load_model
from hw_profiles.performance import PerformanceModel
from loop.contracts import (
    Finish,
    Memo,
    Observation,
    Plan,
    Policy,
    ReplicaSpec,
    ReplicaView,
    RequestRecord,
    RequestView,
)
from loop.journal_serving import ServedReplica, ServedRequest, ServingJournal

MARGIN_S = 1.0
"""Of virtual time, between the last replica's start and the first request."""


LAST = 1e12


class CounterfactualError(ValueError):
    """A stretch of a run that cannot be replayed; the message says why."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of a live run in which its replicas did not change."""

    cluster: str
    block_tokens: int
    replicas: tuple[ServedReplica, ...]
    requests: tuple[ServedRequest, ...]


@dataclass(frozen=True, slots=True)
class Errors:
    """The twin against what happened: medians over requests of absolute relative errors, and error of the mean."""

    requests: int
    left_out: int
    """Not served to the end in one of the two."""
    e2e_median: float
    e2e_p90: float
    ttft_median: float
    tpot_median: float
    e2e_of_mean: float
    """Signed: above 0 where the twin is slower."""
    ttft_of_mean: float


def read_stretch(
    journal: ServingJournal,
    run: int | None = None,
    *,
    since_s: float = float("-inf"),
    until_s: float = float("inf"),
) -> Stretch:
    """Requests that arrived in [since_s, until_s), and the replicas that served them.

    Raises:
        CounterfactualError: there are none, or the replicas changed meanwhile.
    """
    config = journal.config(run)
    requests = tuple(journal.served(run, since_s=since_s, until_s=until_s))
    if not requests:
        raise CounterfactualError(f"{journal.path}: no requests arrived from {since_s:g} s to {until_s:g} s")
    begin_s = requests[0].record.arrival_s
    end_s = max(max(r.record.last_token_s, r.record.arrival_s) for r in requests)
    alive: list[ServedReplica] = []
    for replica in journal.served_replicas(run):
        begun = replica.ready_s is not None and replica.ready_s <= begin_s
        over = replica.ended_s is not None and replica.ended_s <= begin_s
        if not begun and (replica.ready_s is None or replica.ready_s > end_s):
            continue
        if over:
            continue
        if not begun or (replica.ended_s is not None and replica.ended_s < end_s):
            raise CounterfactualError(
                f"{journal.path}: replica {replica.id} came or went between {begin_s:.1f} s and {end_s:.1f} s; "
                "choose a stretch without a reconfiguration"
            )
        alive.append(replica)
    if not alive:
        raise CounterfactualError(f"{journal.path}: nothing served between {begin_s:.1f} s and {end_s:.1f} s")
    return Stretch(
        str(config.get("cluster", "")), int(config.get("block_tokens", 16)), tuple(alive), requests
    )


def replay_in_twin(
    stretch: Stretch, performance: PerformanceModel, policy: Policy | None = None, *, seed: int = 0
) -> list[RequestRecord]:
    """Records of the same requests in the twin, on the run's own clock. None: routed as recorded.

    Raises:
        CounterfactualError: the twin got stuck.
        PlanError: the replicas do not fit the cluster's profile.
        ProfileError: no profile of the cluster or of a model.
    """
    models = _models(stretch)
    records: list[RequestRecord] = []
    twin = Twin(
        topology=load_cluster(stretch.cluster),
        models=models,
        performance=performance,
        sink=records.append,
        seed=seed,
        block_tokens=stretch.block_tokens,
        prior_output_tokens=DispatcherOptions().prior_output_tokens,
    )
    twin.use(policy or AsRecorded(stretch), Memo())
    plan = Plan(tuple(replica.spec for replica in stretch.replicas))
    begin_s = twin.apply(plan).expected_s + MARGIN_S
    twin.run_until(begin_s)
    shift_s = begin_s - stretch.requests[0].record.arrival_s
    asked = sorted((r.as_request() for r in stretch.requests), key=lambda r: (r.arrival_s, r.id))
    twin.submit(r._replace(arrival_s=r.arrival_s + shift_s) for r in asked)
    if not twin.run_until_idle():
        raise CounterfactualError(f"the twin got stuck at {twin.now_s - shift_s:.1f} s")
    return [_shifted(record, -shift_s) for record in records]


def compare(stretch: Stretch, simulated: Sequence[RequestRecord]) -> Errors:
    """Request by request. Raises CounterfactualError when no request was served to its end in both."""
    twin = {r.id: r for r in simulated}
    pairs: list[tuple[RequestRecord, RequestRecord]] = []
    for served in stretch.requests:
        real, other = served.record, twin.get(served.record.id)
        if real.finish is Finish.OK and other is not None and other.finish is Finish.OK:
            pairs.append((real, other))
    if not pairs:
        raise CounterfactualError("no request was served to its end, in the run and in the twin")
    e2e = [(r.last_token_s - r.arrival_s, t.last_token_s - t.arrival_s) for r, t in pairs]
    ttft = [(r.first_token_s - r.arrival_s, t.first_token_s - t.arrival_s) for r, t in pairs]
    tpot = [
        (r.last_token_s - r.first_token_s, t.last_token_s - t.first_token_s)
        for r, t in pairs
        if r.output_tokens > 1
    ]
    errors = sorted(_relative(e2e))
    return Errors(
        requests=len(pairs),
        left_out=len(stretch.requests) - len(pairs),
        e2e_median=statistics.median(errors),
        e2e_p90=errors[min(len(errors) - 1, int(0.9 * len(errors)))],
        ttft_median=statistics.median(_relative(ttft)),
        tpot_median=statistics.median(_relative(tpot) or [0.0]),
        e2e_of_mean=_of_mean(e2e),
        ttft_of_mean=_of_mean(ttft),
    )


class AsRecorded:
    """Routes each request to where it really went, and orders queues as they really were; never replans."""

    name = "as-recorded"
    digest = "as-recorded"

    def __init__(self, stretch: Stretch) -> None:
        positions: dict[int, int] = {}
        for models in _by_model(stretch).values():
            positions.update({replica.id: i for i, replica in enumerate(models)})
        self._went: Mapping[int, int] = {
            r.record.id: positions.get(r.record.replica, 0) for r in stretch.requests
        }
        self._begun: Mapping[int, float] = {
            r.record.id: r.record.scheduled_s if r.record.scheduled_s >= 0.0 else math.inf
            for r in stretch.requests
        }

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        """Never."""
        del obs, memo
        return False

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        """The plan that stands."""
        del budget_s, memo
        return obs.plan

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
        """As recorded; the last one where some are missing."""
        del memo
        return min(self._went[request.id], len(replicas) - 1)

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        """Those first that were taken first; what never was comes last."""
        del replica, memo
        return min(self._begun[request.id], LAST)


def _models(stretch: Stretch) -> dict[str, ModelSpec]:
    """Profiles by the names that the run used."""
    return {name: load_model(name) for name in _by_model(stretch)}


def _by_model(stretch: Stretch) -> dict[str, list[ServedReplica]]:
    found: dict[str, list[ServedReplica]] = {}
    for replica in stretch.replicas:
        spec: ReplicaSpec = replica.spec
        found.setdefault(spec.model, []).append(replica)
    return found


def _relative(pairs: Sequence[tuple[float, float]]) -> list[float]:
    return [abs(other / real - 1.0) for real, other in pairs if real > 0.0]


def _of_mean(pairs: Sequence[tuple[float, float]]) -> float:
    real = sum(r for r, _ in pairs)
    return sum(t for _, t in pairs) / real - 1.0 if real > 0.0 else 0.0


def _shifted(record: RequestRecord, by_s: float) -> RequestRecord:
    names = ("arrival_s", "queued_s", "scheduled_s", "first_token_s", "last_token_s")
    times = {name: value + by_s for name in names if (value := getattr(record, name)) >= 0.0}
    return record._replace(**times)
