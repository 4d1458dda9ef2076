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
from statistics import fmean
from typing import Any

from loop.compose.objective import Objective, score
from loop.compose.rehearsal import MOST_REQUESTS, Stage, rehearse
from loop.compose.replay import ReplayConfig, Start, replay
from loop.compose.world import World, WorldSpec, build_world
from loop.contracts import (
    Death,
    DeploymentOption,
    Evaluation,
    EvaluationTask,
    Observation,
    Policy,
    PolicyCrashed,
    PolicyFault,
    PolicySource,
    PolicyTimeout,
    ReplayMode,
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

REHEARSALS_AT_A_TIME = 2
"""Changes that one evaluation rehearses; they take turns from window to window."""

ENTRY = "loop.compose.scoring:make"

HORIZON_WINDOWS = 4.0
"""For so many windows the load is expected to stay as it was."""
CHURN_WINDOWS = 1.0
"""The same while devices come and go: the next change is near."""


@dataclass(frozen=True, slots=True)
class ScoringSetup:
    """What a scoring worker is given before its lockdown."""

    worlds: tuple[WorldSpec, ...]
    """World 0 is the nominal one; the others are perturbed."""
    options: tuple[DeploymentOption, ...]
    config: ReplayConfig
    objective: Objective
    rehearsals: tuple[str, ...] = ()
    """Changes that are rehearsed, see loop.compose.rehearsal."""

    @property
    def perturbed(self) -> tuple[int, ...]:
        """The perturbed worlds."""
        return tuple(range(1, len(self.worlds)))

    @property
    def rehearsing(self) -> int:
        """The world in which the windows are as they were, and the last one is also had with each change."""
        return len(self.worlds)

    def rehearsals_in(self, world: int) -> int:
        """How many changes one evaluation in a world rehearses."""
        if world == self.rehearsing_all:
            return len(self.rehearsals)
        return min(REHEARSALS_AT_A_TIME, len(self.rehearsals)) if world == self.rehearsing else 0

    @property
    def rehearsing_all(self) -> int:
        """The world in which the last window is had with every change, and not as it was."""
        return len(self.worlds) + 1


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive past windows, and what was seen when they began."""

    windows: tuple[Window, ...]
    start: Start
    as_one: bool = False
    """One figure for all its windows: what a change costs in the first, it earns in the others."""
    weights: tuple[float, ...] = ()
    """Of its windows in that figure; empty: all alike."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One replay: these windows in this world (an index into `worlds`), from there."""

    world: int
    windows: Sequence[Window]
    start: Start
    as_one: bool
    weights: tuple[float, ...] = ()


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
        began = time.process_time()
        scenes = list(_scenes(setup, worlds, job))
        runs = [
            replay(worlds[s.world], policy, fallback, s.windows, setup.config, start=s.start) for s in scenes
        ]
        verdict = _verdict(runs, setup.objective, scenes)
        return _dumps(verdict | {"cpu_s": time.process_time() - began})

    return serve


def _scenes(setup: ScoringSetup, worlds: Sequence[World], job: ScoringJob) -> Iterator[Scene]:
    """Each replay that a job asks for: the segments as they were in the nominal world, with requests drawn anew
    in a perturbed one; where changes are rehearsed, also the last segment with some of them, in the perturbed
    worlds by turns.
    """
    if 0 < job.world < setup.rehearsing:
        for s in job.segments:
            yield Scene(
                job.world,
                [redraw(w, job.world) for w in s.windows],
                s.start,
                as_one=s.as_one,
                weights=s.weights,
            )
        return
    if job.world != setup.rehearsing_all:
        for s in job.segments:
            yield Scene(0, s.windows, s.start, as_one=s.as_one, weights=s.weights)
    if job.world < setup.rehearsing or not job.segments:
        return
    last = job.segments[-1]
    down = frozenset(d.id for d in last.start.obs.devices if not d.available)
    turn = max(0, last.windows[0].index - 1)
    for number in range(setup.rehearsals_in(job.world)):
        place = (turn * REHEARSALS_AT_A_TIME + number) % len(setup.rehearsals)
        world = 1 + place % len(setup.perturbed) if setup.perturbed else 0
        stage = Stage.of(worlds[world], down)
        windows = [rehearse(setup.rehearsals[place], w, stage, turn) for w in last.windows[-2:]]
        yield Scene(world, windows, last.start, as_one=True)


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


def _verdict(
    runs: Sequence[RunResult], objective: Objective, scenes: Sequence[Scene | Segment]
) -> dict[str, Any]:
    """A score, or death by the first fault: a candidate that needs its fallback is not a candidate."""
    faults = [run.faults for run in runs if run.faults.total]
    if faults:
        death = Death.INFEASIBLE if faults[0].infeasible else Death.ERROR
        return {"death": death, "detail": "; ".join(faults[0].examples)[:500]}
    scores = [_joined(score(run, objective), scene) for run, scene in zip(runs, scenes, strict=True)]
    return {"score": asdict(_sum(scores))}


def _joined(found: Score, scene: Scene | Segment) -> Score:
    """The score of one replay, its windows one figure where they are to be."""
    if not scene.as_one:
        return found
    weights = scene.weights or (1.0,) * len(found.per_window)
    value = sum(w * v for w, v in zip(weights, found.per_window, strict=True))
    return replace(found, objective=value, per_window=(value,))


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
    """An Evaluator (port) over a pool of locked scoring workers.

    Where changes are rehearsed, the objective is the mean of what the windows took and of what the rehearsals
    took, each against `reference` on the same: seconds of a rehearsed flood do not drown those of the past.
    """

    def __init__(
        self, pool: WorkerPool, setup: ScoringSetup, reference: PolicySource, *, deadline_s: float = 30.0
    ) -> None:
        self._pool = pool
        self._setup = setup
        self._reference = reference
        self._deadline_s = deadline_s
        self._past: dict[int, PastWindow] = {}
        self._now: Observation | None = None
        self._expected: dict[EvaluationTask, tuple[float, ...]] = {}
        self.evaluations = 0
        self.requests = 0
        """Simulated requests, over all evaluations: what budgets are compared in."""
        self.cpu_s = 0.0
        """CPU time that the workers say they spent in replays."""
        self.objectives: dict[tuple[str, EvaluationTask], float] = {}
        """Of policies (by digest) on tasks, as far as they have a score."""

    def learn(self, past: Sequence[PastWindow], now: Observation | None = None) -> None:
        """These windows are past now: tasks may name them. `now` None: they are replayed from where they began;
        else as if they came next, from what is seen now: a policy that learns from what it sees has seen them.
        """
        self._past = {p.window.index: p for p in past}
        self._now = now
        self._expected.clear()
        self.objectives.clear()

    def evaluate(
        self, jobs: Sequence[tuple[PolicySource, EvaluationTask]]
    ) -> Iterator[tuple[int, Evaluation]]:
        """Score each (policy, task); the answers come in the order in which they are done."""
        unknown = {t for _, t in jobs if t.world >= self._setup.rehearsing and t not in self._expected}
        references = [(self._reference, task) for task in sorted(unknown, key=lambda t: (t.world, t.windows))]
        for index, evaluation in self._run(references):
            score = evaluation.score
            self._expected[references[index][1]] = score.per_window if score is not None else ()
        for index, evaluation in self._run(jobs):
            policy, task = jobs[index]
            weighed = self._weighed(task, evaluation)
            if weighed.score is not None:
                self.objectives[policy.digest, task] = weighed.score.objective
            yield index, weighed

    def _run(self, jobs: Sequence[tuple[PolicySource, EvaluationTask]]) -> Iterator[tuple[int, Evaluation]]:
        payloads = [PoolJob(pickle.dumps(self._job(policy, task)), self._deadline_s) for policy, task in jobs]
        for index, answer in self._pool.run(payloads):
            policy, task = jobs[index]
            self.evaluations += 1
            self.requests += self._requests(task)
            yield index, self._evaluation(policy, answer)

    def _weighed(self, task: EvaluationTask, evaluation: Evaluation) -> Evaluation:
        """With an objective in which the rehearsals count as much as the past does."""
        expected, score = self._expected.get(task, ()), evaluation.score
        if task.world < self._setup.rehearsing or score is None or len(expected) != len(score.per_window):
            return evaluation
        relative = [v / e if e > 0 else 1.0 for v, e in zip(score.per_window, expected, strict=True)]
        if task.world == self._setup.rehearsing_all:
            usual_s = fmean(expected)
            return replace(evaluation, score=replace(score, objective=usual_s * fmean(relative)))
        n = 1 if self._now is not None else len(task.windows)
        past_s, usual_s = sum(score.per_window[:n]), sum(expected[:n])
        parts = [past_s / usual_s if usual_s > 0 else 1.0]
        if relative[n:]:
            parts.append(fmean(relative[n:]))
        return replace(evaluation, score=replace(score, objective=usual_s * fmean(parts)))

    def segments(self, indices: Sequence[int]) -> tuple[Segment, ...]:
        """Runs of consecutive windows; or all of them as the next ones."""
        named = [self._past[i] for i in sorted(indices)]
        return past_segments(named) if self._now is None else (as_next(named, self._now, self._latest),)

    def _requests(self, task: EvaluationTask) -> int:
        """Requests that one evaluation of a task simulates."""
        segments = self.segments(task.windows)
        rehearsed = sum(min(MOST_REQUESTS, len(w.requests)) for w in segments[-1].windows[-2:])
        count = rehearsed * self._setup.rehearsals_in(task.world)
        if task.world != self._setup.rehearsing_all:
            count += sum(len(w.requests) for s in segments for w in s.windows)
        return count

    @property
    def _latest(self) -> PastWindow:
        return self._past[max(self._past)]

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
            took_s = min(max(0.0, float(reply["cpu_s"])), self._deadline_s)
            self.cpu_s += took_s
            return Evaluation(policy.digest, Score(**fields), wall_s=took_s)
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


def as_next(past: Sequence[PastWindow], now: Observation, latest: PastWindow) -> Segment:
    """Past windows as if they came next, twice when it is one alone: whatever lies in wait, it goes on for a
    while (the second stands for all up to the horizon, so that a change of layout is paid once). What happened to devices in them has happened, and shows in `now`.
    """
    once = len(past) == 1
    chosen = [past[0].window] * 2 if once else [p.window for p in past]
    windows = tuple(_moved(w, now.tick + number, now) for number, w in enumerate(chosen))
    horizon = CHURN_WINDOWS if now.changes else HORIZON_WINDOWS
    weights = (2.0 / horizon, 2.0 - 2.0 / horizon) if once else ()
    return Segment(windows, Start(now, latest.obs), as_one=True, weights=weights)


def _moved(window: Window, index: int, now: Observation) -> Window:
    """A window in another place, without its events. In batch replay arrival times do not matter, and stay."""
    moved = replace(window, index=index, events=())
    if now.mode is ReplayMode.BATCH:
        return moved
    start_s = index * now.window_s
    later_s = start_s - window.start_s
    requests = [r._replace(arrival_s=r.arrival_s + later_s) for r in window.requests]
    return replace(moved, start_s=start_s, end_s=window.end_s + later_s, requests=requests)


def score_apart(
    setup: ScoringSetup, policy: Policy, segments: Sequence[Segment], *, world: int = 0
) -> Evaluation:
    """Score a finalist once more on segments, the twin in this process and the policy in its own.

    A candidate that shares the twin's memory could write its own marks; here it cannot.
    """
    began = time.monotonic()
    built = build_world(setup.worlds[world], setup.options)
    fallback = load_baseline(FALLBACK)
    runs = [replay(built, policy, fallback, s.windows, setup.config, start=s.start) for s in segments]
    verdict = _verdict(runs, setup.objective, segments)
    wall_s = time.monotonic() - began
    if "score" in verdict:
        return Evaluation(policy.digest, Score(**verdict["score"]), wall_s=wall_s)
    return Evaluation(policy.digest, None, Death(verdict["death"]), verdict["detail"], wall_s)
