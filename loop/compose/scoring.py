"""Scoring: twin and candidate together in one locked worker process; finalists again, apart.

`make` is the entry point that such a worker imports and calls before it is locked down; what it returns then
serves jobs. Everything that a job needs travels with it, so a worker that was killed is replaced by a fresh
one, and no window ever lies in a worker's memory before it is past.
"""

from __future__ import annotations

import json
import pickle
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from loop.compose.objective import Objective, score
from loop.compose.replay import ReplayConfig, Start, replay
from loop.compose.world import WorldSpec, build_world
from loop.contracts import (
    Death,
    DeploymentOption,
    Evaluation,
    EvaluationTask,
    Policy,
    PolicyCrashed,
    PolicyFault,
    PolicySource,
    PolicyTimeout,
    RunResult,
    Score,
    Window,
)
from loop.runner.evolution import PastWindow
from strategy.baselines import load_baseline
from strategy.evolve.sandbox import PoolJob, WorkerPool
from strategy.evolve.worker.untrusted import load_untrusted

FALLBACK = "least_loaded"
"""The baseline that answers where a policy fails."""

ENTRY = "loop.compose.scoring:make"


@dataclass(frozen=True, slots=True)
class ScoringSetup:
    """What a scoring worker is given before its lockdown."""

    worlds: tuple[WorldSpec, ...]
    """World 0 is the nominal one; the others are perturbed."""
    options: tuple[DeploymentOption, ...]
    config: ReplayConfig
    objective: Objective


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive past windows, and what was seen when they began."""

    windows: tuple[Window, ...]
    start: Start


@dataclass(frozen=True, slots=True)
class ScoringJob:
    """One policy on some segments of the past, in one world."""

    policy: PolicySource
    segments: tuple[Segment, ...]
    world: int


def make(init_payload: bytes) -> Callable[[bytes], bytes]:
    """Build the worlds of a pickled ScoringSetup; return the function that serves pickled ScoringJobs.

    Answers are JSON: `{"score": {...}}` or `{"death": ..., "detail": ...}`.
    """
    setup: ScoringSetup = pickle.loads(init_payload)  # noqa: S301  from the parent, who is trusted
    worlds = [build_world(spec, setup.options) for spec in setup.worlds]
    fallback = load_baseline(FALLBACK)

    def serve(body: bytes) -> bytes:
        job: ScoringJob = pickle.loads(body)  # noqa: S301
        try:
            policy = load_untrusted(job.policy.source, job.policy.name)
        except Exception as error:  # noqa: BLE001 - foreign code
            return _dumps({"death": Death.ERROR, "detail": f"{type(error).__name__}: {error}"[:300]})
        runs = [
            replay(
                worlds[job.world],
                policy,
                fallback,
                [redraw(w, job.world) for w in s.windows] if job.world else s.windows,
                setup.config,
                start=s.start,
            )
            for s in job.segments
        ]
        return _dumps(_verdict(runs, setup.objective))

    return serve


def redraw(window: Window, seed: int) -> Window:
    """The window with its requests drawn anew from themselves, with replacement: another hour of the same
    demand. Arrival times stay.
    """
    if not window.requests:
        return window
    rng = random.Random(f"{seed}/{window.index}")
    copies: Counter[int] = Counter()
    requests = []
    for request, drawn in zip(
        window.requests, rng.choices(window.requests, k=len(window.requests)), strict=True
    ):
        hashes = drawn.block_hashes
        if hashes and copies[drawn.id]:  # a second copy is another prompt: it finds nothing in the cache
            hashes = tuple(hash((h, seed, copies[drawn.id])) for h in hashes)
        copies[drawn.id] += 1
        requests.append(drawn._replace(id=request.id, arrival_s=request.arrival_s, block_hashes=hashes))
    return replace(window, requests=requests)


def _verdict(runs: Sequence[RunResult], objective: Objective) -> dict[str, Any]:
    """A score, or death by the first fault: a candidate that needs its fallback is not a candidate."""
    faults = [run.faults for run in runs if run.faults.total]
    if faults:
        death = Death.INFEASIBLE if faults[0].infeasible else Death.ERROR
        return {"death": death, "detail": "; ".join(faults[0].examples)[:500]}
    return {"score": asdict(_sum([score(run, objective) for run in runs]))}


def _sum(scores: Sequence[Score]) -> Score:
    """One score of several segments."""
    n = sum(len(s.per_window) for s in scores) or 1
    return Score(
        objective=sum(s.objective for s in scores),
        total_execution_time_s=sum(s.total_execution_time_s for s in scores),
        ttft_p99_s=max((s.ttft_p99_s for s in scores), default=0.0),
        goodput=sum(s.goodput * len(s.per_window) for s in scores) / n,
        device_hours=sum(s.device_hours for s in scores),
        joules=sum(s.joules for s in scores),
        per_window=tuple(v for s in scores for v in s.per_window),
        faults=sum(s.faults for s in scores),
        replan_rate=sum(s.replan_rate * len(s.per_window) for s in scores) / n,
        scaling=sum(s.scaling * len(s.per_window) for s in scores) / n,
        fingerprint="+".join(s.fingerprint for s in scores)[:200],
    )


def _dumps(answer: Mapping[str, Any]) -> bytes:
    return json.dumps(answer).encode()


class TwinEvaluator:
    """An Evaluator (port) over a pool of locked scoring workers."""

    def __init__(self, pool: WorkerPool, *, deadline_s: float = 30.0) -> None:
        self._pool = pool
        self._deadline_s = deadline_s
        self._past: dict[int, PastWindow] = {}
        self.evaluations = 0
        self.windows = 0
        """Simulated windows, over all evaluations: what budgets are compared in."""
        self.objectives: dict[tuple[str, EvaluationTask], float] = {}
        """Of policies (by digest) on tasks, as far as they have a score."""

    def learn(self, past: Sequence[PastWindow]) -> None:
        """These windows are past now: tasks may name them."""
        self._past = {p.window.index: p for p in past}

    def evaluate(
        self, jobs: Sequence[tuple[PolicySource, EvaluationTask]]
    ) -> Iterator[tuple[int, Evaluation]]:
        """Score each (policy, task); the answers come in the order in which they are done."""
        payloads = [PoolJob(pickle.dumps(self._job(policy, task)), self._deadline_s) for policy, task in jobs]
        for index, answer in self._pool.run(payloads):
            policy, task = jobs[index]
            self.evaluations += 1
            self.windows += len(task.windows)
            evaluation = self._evaluation(policy, answer)
            if evaluation.score is not None:
                self.objectives[policy.digest, task] = evaluation.score.objective
            yield index, evaluation

    def segments(self, indices: Sequence[int]) -> tuple[Segment, ...]:
        """Group window indices into runs of consecutive ones."""
        return past_segments([self._past[i] for i in sorted(indices)])

    def _job(self, policy: PolicySource, task: EvaluationTask) -> ScoringJob:
        return ScoringJob(policy, self.segments(task.windows), task.world)

    def _evaluation(self, policy: PolicySource, answer: bytes | PolicyFault) -> Evaluation:
        if isinstance(answer, PolicyFault):
            death = (
                Death.TIMEOUT
                if isinstance(answer, PolicyTimeout)
                else Death.CRASH
                if isinstance(answer, PolicyCrashed)
                else Death.ERROR
            )
            return Evaluation(policy.digest, None, death, str(answer)[:500])
        try:
            reply = json.loads(answer)
            if "death" in reply:
                return Evaluation(policy.digest, None, Death(reply["death"]), str(reply["detail"])[:500])
            fields = reply["score"]
            fields["per_window"] = tuple(float(v) for v in fields["per_window"])
            return Evaluation(policy.digest, Score(**fields))
        except (ValueError, KeyError, TypeError) as error:
            # The worker runs foreign code: whatever it sends that is no answer is the candidate's death.
            return Evaluation(policy.digest, None, Death.CRASH, f"unreadable answer: {error}"[:300])


def past_segments(past: Sequence[PastWindow]) -> tuple[Segment, ...]:
    """Group past windows into runs of consecutive ones, each with where it starts."""
    segments: list[Segment] = []
    for p in past:
        if segments and segments[-1].windows[-1].index == p.window.index - 1:
            segments[-1] = replace(segments[-1], windows=(*segments[-1].windows, p.window))
        else:
            segments.append(Segment((p.window,), Start(p.obs, p.previous)))
    return tuple(segments)


def score_apart(
    setup: ScoringSetup, policy: Policy, past: Sequence[PastWindow], *, world: int = 0
) -> Evaluation:
    """Score a finalist once more, the twin in this process and the policy in its own.

    A candidate that shares the twin's memory could write its own marks; here it cannot.
    """
    began = time.monotonic()
    built = build_world(setup.worlds[world], setup.options)
    fallback = load_baseline(FALLBACK)
    runs = [
        replay(built, policy, fallback, s.windows, setup.config, start=s.start) for s in past_segments(past)
    ]
    verdict = _verdict(runs, setup.objective)
    wall_s = time.monotonic() - began
    if "score" in verdict:
        return Evaluation(policy.digest, Score(**verdict["score"]), wall_s=wall_s)
    return Evaluation(policy.digest, None, Death(verdict["death"]), verdict["detail"], wall_s)
