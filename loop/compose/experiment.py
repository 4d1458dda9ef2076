"""An experiment: every baseline and the evolving system on the same windows of one judged world.

The order is: baselines (in processes of their own), the evolving system with its evolution beside it, the
searched rivals (tuned static, best of N random programs, each with as many simulated requests as evolution had), and
the oracle.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from execution.twin import WorldParameters
from hw_profiles.performance import Perturbation
from loop.compose.evolving import DEFAULT_EVALUATIONS, Evolution, EvolutionConfig
from loop.compose.jobs import TRUSTED, JobSetup, Told, drain, run_policy, start_pool
from loop.compose.objective import Objective, window_value
from loop.compose.rehearsal import changes_for
from loop.compose.replay import ReplayConfig, replay
from loop.compose.scoring import FALLBACK, ScoringSetup
from loop.compose.world import World, WorldSpec, build_world
from loop.contracts import (
    ClusterEvent,
    PolicyFaults,
    PolicySource,
    Quantiles,
    ReplayMode,
    Resources,
    RunResult,
    ServingStats,
    Slo,
    Window,
    WindowResult,
    Workload,
)
from loop.controller import ControllerConfig
from loop.journal import Journal
from loop.runner.results import (
    ExperimentResult,
    SystemKind,
    SystemResult,
    WindowInfo,
)
from loop.runner.table import Progress
from strategy.baselines import list_baselines, load_baseline, tuned_baseline
from strategy.evolve import check_policy
from strategy.live import FILE_NAME

EVOLVING = "evolving"
ORACLE = "oracle"
MAIN_CLUSTER = "mixed-64"
MAIN_MODELS = ("llama-3.1-70b",)
MAIN_WINDOW_S = 150.0
HIDDEN_SPREAD = 0.2
EVOLUTION_SPREAD = 0.15


@dataclass(frozen=True, slots=True)
class ExperimentConfig:
    """What to compare, where, and how hard to try. Times in seconds."""

    title: str
    cluster: str
    models: tuple[str, ...]
    window_s: float
    mode: ReplayMode = ReplayMode.BATCH
    seed: int = 0
    slo: Slo = field(default_factory=Slo)
    objective: Objective = Objective.TIME
    baselines: tuple[str, ...] = ()
    tuned: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = ()
    """Constants of baselines, by name, that are not those they come with."""
    users: tuple[PolicySource, ...] = ()
    """Policies of the user's own: run in a sandbox, beside the baselines."""
    first: str = FALLBACK
    """The baseline that the evolving system begins with, unless `begins_with` is given."""
    begins_with: PolicySource | None = None
    """A policy of another kind that the evolving system begins with; it serves in a sandbox."""
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)
    workers: int = 2
    """Processes for baselines and for scoring."""
    searched: bool = True
    """Also run tuned static and best of N random programs."""
    oracle: bool = True
    """Also show the limit: in each window the best of all policies, switching for free."""


_CONFIG = TypeAdapter(ExperimentConfig)


def main_job(*, seed: int = 0, evaluations: int = DEFAULT_EVALUATIONS) -> ExperimentConfig:
    """What `make run` runs, and `benchmarks.loop_first` over several seeds."""
    return ExperimentConfig(
        title="a volatile hour",
        cluster=MAIN_CLUSTER,
        models=MAIN_MODELS,
        window_s=MAIN_WINDOW_S,
        seed=seed,
        baselines=tuple(list_baselines()),
        evolution=EvolutionConfig(evaluations=evaluations),
    )


class Experiment:
    """Runs one experiment; `progress` holds a row for each system and `status` says what goes on."""

    def __init__(
        self,
        config: ExperimentConfig,
        workload: Workload,
        windows: tuple[Window, ...],
        out: Path,
    ) -> None:
        self.config = config
        self.progress: dict[str, Progress] = {}
        self.status = "building the world"
        self._workload = workload
        self._windows = windows
        self._out = out
        self.on_progress: Callable[[], None] = lambda: None
        self._systems: list[SystemResult] = []
        self._evolution_cpu_s = 0.0
        nominal = WorldSpec(config.cluster, config.models, seed=config.seed)
        self._nominal = build_world(nominal)
        self._judged_spec = judged_world(nominal, config.seed)
        self._replay_config = ReplayConfig(
            ControllerConfig(mode=config.mode), config.slo, config.window_s, workload.block_tokens
        )

    def run(self) -> ExperimentResult:
        """Everything, in order. Safe to interrupt: workers end, and what was journaled stays."""
        config = self.config
        names = [*config.baselines, *(u.name for u in config.users)]
        kinds = dict.fromkeys(config.baselines, SystemKind.BASELINE)
        kinds |= {u.name: SystemKind.USER for u in config.users}
        for name in names:
            self._row(name, kinds[name])
        self._row(EVOLVING, SystemKind.EVOLVING)
        with ExitStack() as stack:
            pool, queue = start_pool(self._job_setup(), config.workers)
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            evolution = stack.enter_context(self._evolution())
            self.status = "baselines"
            tuned = {name: dict(constants) for name, constants in config.tuned}
            sources = {name: baseline_source(name, tuned.get(name)) for name in config.baselines}
            sources |= {u.name: u for u in config.users}
            self._run_all(pool, queue, sources, kinds)
            self.status = "the evolving system, with its evolution beside it"
            self._evolve(evolution)
            if config.searched:
                self._search(pool, queue, evolution)
            if config.oracle and config.mode is ReplayMode.BATCH:
                self._oracle(pool, queue, evolution)
        return self._result(evolution)

    def _job_setup(self) -> JobSetup:
        return JobSetup(
            self._judged_spec,
            self._nominal.options,
            self._replay_config,
            self._windows,
        )

    def _evolution(self) -> Evolution:
        nominal = self._nominal.spec
        worlds = [nominal] + [
            replace(nominal, perturbation=Perturbation(seed=1_000 + k, spread=EVOLUTION_SPREAD), seed=k)
            for k in range(1, self.config.evolution.worlds + 1)
        ]
        setup = ScoringSetup(
            tuple(worlds),
            self._nominal.options,
            self._replay_config,
            self.config.objective,
            changes_for(self._nominal) if self.config.evolution.rehearse else (),
        )
        tuned = {name: dict(constants) for name, constants in self.config.tuned}
        known = (baseline_source(name, tuned.get(name)) for name in self.config.baselines or list_baselines())
        return Evolution(
            setup,
            self.config.begins_with or baseline_source(self.config.first, tuned.get(self.config.first)),
            self.config.evolution,
            baselines=tuple(source for source in known if not check_policy(source.source)),
            seed=self.config.seed,
            workers=self.config.workers,
            archive=self._out / "archive.sqlite",
            store=self._out / FILE_NAME,
        )

    def _run_all(
        self,
        pool: ProcessPoolExecutor,
        queue: Queue[Told],
        sources: dict[str, PolicySource],
        kinds: dict[str, SystemKind],
    ) -> None:
        """Run policies side by side, showing how far each is."""
        running: dict[Future[RunResult], str] = {
            pool.submit(run_policy, name, source): name for name, source in sources.items()
        }
        pending = set(running)
        while pending:
            done, pending = wait(pending, timeout=0.2)
            self._hear(queue)
            for future in done:
                name = running[future]
                run = future.result()
                self._systems.append(SystemResult(name, kinds[name], run, sources[name].note))
                self._update(name, done=len(self._windows), total_s=run.total_execution_time_s, note="done")
            self.on_progress()

    def _hear(self, queue: Queue[Told]) -> None:
        for system, index, total_s, ttft_s in drain(queue):
            self._update(
                system, done=index + 1, total_s=total_s, ttft_p99_s=ttft_s, note=f"serving window {index}"
            )

    def _evolve(self, evolution: Evolution) -> None:
        """The judged run of the evolving system, its evolution in a thread and in other processes."""
        judged = build_world(self._judged_spec, self._nominal.options)
        total = 0.0
        box: list[RunResult | BaseException] = []

        def tell(result: WindowResult) -> None:
            nonlocal total
            total += result.total_s
            self._update(EVOLVING, done=result.index + 1, total_s=total, ttft_p99_s=result.stats.ttft_s.p99)

        def serve() -> None:
            try:
                box.append(self._serve(judged, evolution, tell))
            except BaseException as error:  # noqa: BLE001 - handed to the main thread below
                box.append(error)

        thread = threading.Thread(target=serve, name="judged-run", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.2)
                self._update(EVOLVING, note=evolution.status)
                self.on_progress()
        except KeyboardInterrupt:
            evolution.background.stop()
            raise
        outcome = box[0]
        if isinstance(outcome, BaseException):
            raise outcome
        self._update(EVOLVING, note=f"done: {len(evolution.served) - 1} policies promoted")
        self._systems.append(SystemResult(EVOLVING, SystemKind.EVOLVING, outcome))

    def _serve(self, judged: World, evolution: Evolution, tell: Callable[[WindowResult], None]) -> RunResult:
        first = evolution.first_policy()
        path = self._out / "journal.sqlite"
        with Journal(path, run=EVOLVING, config=json.loads(_CONFIG.dump_json(self.config))) as journal:
            source = evolution.begin(journal, self._windows[-1].index)
            run = replay(
                judged,
                first,
                load_baseline(FALLBACK),
                self._windows,
                self._replay_config,
                journal=journal,
                source=source,
                on_window=tell,
            )
            evolution.finish()
            self._evolution_cpu_s = evolution.cpu_s
            journal.finish()
        return run

    def _search(self, pool: ProcessPoolExecutor, queue: Queue[Told], evolution: Evolution) -> None:
        """Tuned static and best of N random: searched on the first third, then fixed for the whole run."""
        share = max(1, len(self._windows) // 3)
        budget = evolution.simulated_requests
        for name, search in (
            ("tuned_static", evolution.tuned_static),
            ("best_of_random", evolution.best_of_random),
        ):
            self._row(name, SystemKind.SEARCHED)
            self.status = f"searching for {name} on the first {share} windows"
            self._update(name, note="searching")
            found: list[PolicySource | BaseException] = []

            def find(run: Callable[..., PolicySource] = search, box: list[object] = found) -> None:  # type: ignore[assignment]
                try:
                    box.append(run(share, budget))
                except BaseException as error:  # noqa: BLE001 - handed to the main thread below
                    box.append(error)

            thread = threading.Thread(target=find, name=name, daemon=True)
            thread.start()
            while thread.is_alive():
                thread.join(0.2)
                self._update(name, note=evolution.status)
                self.on_progress()
            if isinstance(found[0], BaseException):
                raise found[0]
            self.status = f"judging {name}"
            source = replace(found[0], name=name)
            self._run_all(pool, queue, {name: source}, {name: SystemKind.SEARCHED})

    def _oracle(self, pool: ProcessPoolExecutor, queue: Queue[Told], evolution: Evolution) -> None:
        """The lower envelope of every policy known at the end, promoted ones included, switching for free."""
        name = ORACLE
        self._row(name, SystemKind.ORACLE)
        self.status = "the oracle asks what each promoted policy would have done from the start"
        runs = [s.run for s in self._systems]
        futures = [
            pool.submit(run_policy, p.name, p) for p in {p.digest: p for p in evolution.served[1:]}.values()
        ]
        while wait(futures, timeout=0.2).not_done:
            self.on_progress()
        list(drain(queue))
        run = envelope([*runs, *(f.result() for f in futures)], self.config.objective)
        self._systems.append(SystemResult(name, SystemKind.ORACLE, run))
        self._update(name, done=len(self._windows), total_s=run.total_execution_time_s, note="done")

    def _row(self, name: str, kind: SystemKind) -> None:
        self.progress[name] = Progress(kind, total=len(self._windows))

    def _update(self, name: str, **changes: object) -> None:
        if name in self.progress:
            self.progress[name] = replace(self.progress[name], **changes)  # type: ignore[arg-type]

    def _result(self, evolution: Evolution) -> ExperimentResult:
        config = self.config
        background = evolution.background
        return ExperimentResult(
            title=config.title,
            workload=self._workload.name,
            generated=self._workload.generated,
            cluster=config.cluster,
            models=config.models,
            mode=config.mode.value,
            seed=config.seed,
            windows=tuple(window_info(w) for w in self._windows),
            systems=tuple(self._systems),
            first=background.served[0],
            last=background.served[-1],
            policies=tuple(background.served),
            evolution=tuple(background.records),
            cost=replace(background.cost, cpu_s=self._evolution_cpu_s),
            notes=tuple(f"{k}: {v}" for k, v in self._workload.notes.items()),
            requests=sum(len(w.requests) for w in self._windows),
        )


def judged_world(nominal: WorldSpec, seed: int) -> WorldSpec:
    """The world that everybody is judged in: its parameters come from a seed that nobody else uses."""
    hidden = 7_919 * (seed + 1)
    return replace(
        nominal,
        perturbation=Perturbation(seed=hidden, spread=HIDDEN_SPREAD),
        parameters=WorldParameters(start_scale=1.15, link_scale=0.9, jitter=0.03),
        seed=hidden,
    )


def baseline_source(name: str, constants: Mapping[str, float] | None = None) -> PolicySource:
    """A baseline as a value that other processes know to be trusted package code, maybe with other constants."""
    policy = tuned_baseline(name, constants) if constants else load_baseline(name)
    note = "tuned: " + ", ".join(f"{k} {v:g}" for k, v in constants.items()) if constants else ""
    source = policy.as_source()
    return replace(source, operator=TRUSTED, note=note or source.note)


def window_info(window: Window) -> WindowInfo:
    """What a window asked for, for plots."""
    n = len(window.requests) or 1
    events: dict[str, None] = dict.fromkeys(_event_text(e) for e in window.events)
    return WindowInfo(
        window.index,
        window.start_s,
        len(window.requests),
        sum(r.input_tokens for r in window.requests) / n,
        sum(r.output_tokens for r in window.requests) / n,
        tuple(events)[:3],
    )


def _event_text(event: ClusterEvent) -> str:
    node = event.target.split("/")[0]
    return f"{node} {event.kind}" + (f" {event.factor:g}" if event.kind == "speed" else "")


def envelope(runs: Sequence[RunResult], objective: Objective) -> RunResult:
    """A run made of the best window of any of `runs`, as if one could switch at no cost: the limit.

    Its quantiles are means over windows (p99: the worst), since its requests were never served together.
    """
    windows = tuple(
        min((run.windows[i] for run in runs), key=lambda w: window_value(w, objective))
        for i in range(len(runs[0].windows))
    )
    parts = [w.stats for w in windows]
    spent = [w.resources for w in windows]
    resources = Resources(
        sum(r.device_s for r in spent), sum(r.joules for r in spent), sum(r.usd for r in spent)
    )
    return RunResult("oracle", windows, _joined(parts), resources, PolicyFaults())


def _joined(parts: Sequence[ServingStats]) -> ServingStats:
    counts: dict[str, Any] = {
        f.name: sum(getattr(p, f.name) for p in parts) for f in fields(ServingStats) if f.type == "int"
    }
    n = counts["finished"] or 1

    def mixed(metric: str) -> Quantiles:
        found: list[tuple[Quantiles, float]] = [(getattr(p, metric), p.finished / n) for p in parts]
        return Quantiles(
            sum(q.count for q, _ in found),
            sum(q.mean * share for q, share in found),
            sum(q.p50 * share for q, share in found),
            sum(q.p90 * share for q, share in found),
            max(q.p99 for q, _ in found),
        )

    return ServingStats(ttft_s=mixed("ttft_s"), tpot_s=mixed("tpot_s"), e2e_s=mixed("e2e_s"), **counts)
